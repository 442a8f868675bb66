// Find objects in a photo: node detect.mjs nano.onnx names.txt photo.jpg
import { readFileSync } from 'node:fs'
import ort from 'onnxruntime-node'
import sharp from 'sharp'

// Pixel i of a scaled line lies between two pixels, and takes a share of the second
function neighbors(i, from, to) {
  const at = Math.min(Math.max((i + 0.5) * from / to - 0.5, 0), from - 1)
  const first = Math.floor(at)
  return { first, second: Math.min(first + 1, from - 1), share: at - first }
}

const mix = (a, b, share) => Math.round(a + (b - a) * share)

// The photo of w x h pixels, scaled to width x height, in the top left of a gray canvas
function letterbox(photo, w, h, width, height, side) {
  const canvas = new Uint8Array(side * side * 3).fill(114)
  for (let y = 0; y < height; y++) {
    const row = neighbors(y, h, height)
    for (let x = 0; x < width; x++) {
      const column = neighbors(x, w, width)
      for (let c = 0; c < 3; c++) {
        const at = (y, x) => photo[(y * w + x) * 3 + c]
        const across = (y) => mix(at(y, column.first), at(y, column.second), column.share)
        const value = mix(across(row.first), across(row.second), row.share)
        canvas[(y * side + x) * 3 + c] = value
      }
    }
  }
  return canvas
}

const [network, namesFile, photoFile] = process.argv.slice(2)
const session = await ort.InferenceSession.create(network)
const side = session.inputMetadata[0].shape[1]
const names = readFileSync(namesFile, 'utf8').split('\n')

// Letterbox
const image = sharp(photoFile, { ignoreIcc: true }).autoOrient().toColorspace('srgb')
const { data, info } = await image.removeAlpha().raw().toBuffer({ resolveWithObject: true })
const { width: w, height: h } = info
const scale = side / Math.max(w, h)
const [width, height] = [w, h].map((n) => Math.max(1, Math.round(n * scale)))
const canvas = letterbox(data, w, h, width, height, side)

// Run
const images = new ort.Tensor('uint8', canvas, [1, side, side, 3])
const { detections } = await session.run({ images })

// Undo
const clip = (value, most) => Math.min(Math.max(value, 0), most).toFixed(1)
for (let i = 0; i < detections.dims[0]; i++) {
  const [, x, y, wide, high, label, score] = detections.data.subarray(7 * i, 7 * i + 7)
  const [x1, x2] = [x, x + wide].map((n) => clip(n * w / width, w))
  const [y1, y2] = [y, y + high].map((n) => clip(n * h / height, h))
  console.log(`${names[label].padEnd(15)} ${score.toFixed(2)}  ${x1} ${y1} ${x2} ${y2}`)
}
