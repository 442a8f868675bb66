// Finds objects in photos and in the camera's picture, in the browser.
// What is special about the network stands in index.html as JSON: names of classes, size, thresholds, files.
'use strict'
const $ = id => document.getElementById(id)
const about = JSON.parse($('about').textContent)

// ---- Onto the canvas of the network, as the training does it (letterbox in cjm_yolox_pytorch)

function roundHalfEven(x) { // As in Python: 0.5 to 0, 1.5 to 2
  const low = Math.floor(x)
  return x - low === .5 ? low + low % 2 : Math.round(x)
}

function letterboxSize(width, height) { // Of the image on the canvas
  const ratio = Math.min(about.size/height, about.size/width)
  return [width, height].map(n => Math.max(1, roundHalfEven(n*ratio)))
}

// For each of `count` pixels: between which two of the `source` pixels it lies, and how much it takes of each.
// PyTorch interpolates in whole numbers: in parts of 2^15, or of 2^14 where a pixel is taken as it is.
function neighbors(count, source) {
  const places = Array.from({length: count}, (_, i) => Math.max(0, (i + .5)*source/count - .5))
  const largest = Math.max(...places.map(place => Math.max(place % 1, 1 - place % 1)))
  const whole = Math.round(largest*2**15) < 2**15 ? 2**15 : 2**14
  return places.map(place => {
    const first = Math.min(Math.floor(place), source - 1), share = place - first
    const shares = [Math.round((1 - share)*whole), Math.round(share*whole)]
    return {first, second: Math.min(first + 1, source - 1), shares, whole}
  })
}

function mix(first, second, {shares, whole}) {
  return Math.floor((first*shares[0] + second*shares[1] + whole/2)/whole)
}

// RGBA pixels -> [3, size, size] RGB from 0 to 255: scaled until they fit, in the top left corner, the rest gray.
// What a canvas makes of `drawImage` with a size is smoother, and differs from browser to browser.
function letterbox({data, width, height}) {
  const side = about.size, planes = new Float32Array(3*side*side).fill(114)
  const [w, h] = letterboxSize(width, height), columns = neighbors(w, width)
  neighbors(h, height).forEach((row, y) => columns.forEach((column, x) => {
    for (let channel = 0; channel < 3; channel++) {
      const at = (y, x) => data[4*(y*width + x) + channel]
      const above = mix(at(row.first, column.first), at(row.first, column.second), column)
      const below = mix(at(row.second, column.first), at(row.second, column.second), column)
      planes[(channel*side + y)*side + x] = mix(above, below, row)
    }
  }))
  return planes
}

// ---- From rows to detections

function decode(rows) { // [A*6] x0, y0, width, height, label, score -> boxes as corners, in pixels of the canvas
  return Array.from({length: rows.length/6}, (_, i) => {
    const [x, y, width, height, label, score] = rows.subarray(6*i, 6*i + 6)
    return {box: [x, y, x + width, y + height], label, score}
  })
}

function overlap(a, b) { // Intersection over union
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]), height = Math.min(a[3], b[3]) - Math.max(a[1], b[1])
  if (width <= 0 || height <= 0) return 0
  const area = box => (box[2] - box[0])*(box[3] - box[1])
  return width*height/(area(a) + area(b) - width*height)
}

// Non-maximum suppression: each is kept, best first, unless it overlaps with a better one of its class
function suppress(found) {
  const candidates = found.filter(d => d.score > leastScore(d.label)).sort((a, b) => b.score - a.score)
  const kept = []
  for (const d of candidates.slice(0, 3000)) {
    if (kept.length === about.max_detections) break
    if (!kept.some(k => k.label === d.label && overlap(k.box, d.box) > about.iou)) kept.push(d)
  }
  return kept
}

function toImage(box, width, height) { // From pixels of the canvas to those of the image, cut at its border
  const [w, h] = letterboxSize(width, height)
  const factors = [width/w, height/h, width/w, height/h], limits = [width, height, width, height]
  return box.map((v, i) => Math.min(Math.max(v*factors[i], 0), limits[i]))
}

let chosenScore = null // By the slider

function leastScore(label) { // As chosen in training, possibly by class, until the slider is moved
  return Math.fround(chosenScore ?? (Array.isArray(about.conf) ? about.conf[label] : about.conf))
}

// ---- ONNX Runtime: with WebGPU where there is one, or else with WebAssembly

const BACKENDS = {webgpu: 'WebGPU', wasm: 'WebAssembly'}
let network // {session, backend}

async function load() {
  if (location.protocol === 'file:') throw new Error('Browsers do not load a network into a page opened as a file. ' +
    'In the folder of this page run “python -m http.server”, and open http://localhost:8000')
  const model = await fetched(about.model, 'The network')
  const wanted = new URLSearchParams(location.search).get('backend') // To compare them: index.html?backend=wasm
  if (wanted === 'webgpu' || (wanted !== 'wasm' && await hasGpu())) {
    try { return await start('webgpu', model) } catch (error) { console.info('WebGPU is not used:', error.message) }
  }
  await start('wasm', model)
}

async function hasGpu() { // A fallback is computed by the processor, which WebAssembly does faster
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null)
  return adapter && !adapter.info?.isFallbackAdapter
}

async function fetched(url, what, integrity = '') {
  let answer
  try { answer = await fetch(url, {integrity}) } catch { // Or a file without the expected hash
    throw new Error(`${what} could not be loaded from ${new URL(url, location)}: check the connection.`)
  }
  if (answer.ok) return new Uint8Array(await answer.arrayBuffer())
  throw new Error(`${what} was not found: ${new URL(url, location)} (${answer.status}).`)
}

async function start(backend, model) {
  await loadRuntime(about.runtime[backend])
  const session = await ort.InferenceSession.create(model.slice(), {executionProviders: [backend], logSeverityLevel: 3})
  network = {session, backend}
  await checkNetwork()
}

// A script, the module that it loads, and WebAssembly: each must have its hash, wherever it comes from
async function loadRuntime({script, module, wasm}) {
  const get = ([file, hash]) => fetched(about.runtime.folder + file, 'ONNX Runtime', hash)
  const [code, loader, binary] = await Promise.all([script, module, wasm].map(get))
  const address = bytes => URL.createObjectURL(new Blob([bytes], {type: 'text/javascript'}))
  await new Promise((resolve, reject) => {
    const onerror = () => reject(new Error('ONNX Runtime does not start in this browser: update it.'))
    const tag = Object.assign(document.createElement('script'), {src: address(code), onload: resolve, onerror})
    document.head.append(tag)
  })
  ort.env.wasm.wasmPaths = {mjs: address(loader)}
  ort.env.wasm.wasmBinary = binary
}

async function run(planes) {
  const images = new ort.Tensor('float32', planes, [1, 3, about.size, about.size])
  return (await network.session.run({images})).detections.data
}

// Drivers have errors: the means of the rows of a pattern must be those that the export found
async function checkNetwork() {
  const pattern = Float32Array.from({length: 3*about.size**2}, (_, i) => Math.round(127.5 + 127.5*Math.sin(i/50)))
  const rows = await run(pattern)
  for (const [column, expected] of about.check) {
    let mean = 0
    for (let i = column; i < rows.length; i += 6) mean += 6*rows[i]/rows.length
    if (Math.abs(mean - expected) <= .01*Math.abs(expected) + .001) continue // Not so if the mean is NaN
    throw new Error(`${BACKENDS[network.backend]} does not compute here what the exported network does.`)
  }
}

// ---- Pictures

const reader = document.createElement('canvas') // Holds the picture without boxes
let shown // {found, ms}, once there is something to show

async function look(source, width, height) {
  shown = null
  const begin = performance.now()
  Object.assign(reader, {width, height})
  const context = reader.getContext('2d', {willReadFrequently: true})
  context.drawImage(source, 0, 0)
  const pixels = context.getImageData(0, 0, width, height)
  if (!pixels.data.some(Boolean)) throw new Error('This browser shows nothing of the picture: choose a smaller one.')
  shown = {found: decode(await run(letterbox(pixels))), ms: performance.now() - begin}
  draw()
}

async function showPhoto(file) {
  // Upright, as the EXIF data say; color profiles are not applied, as in training
  const options = {imageOrientation: 'from-image', colorSpaceConversion: 'none'}
  const photo = await createImageBitmap(file, options).catch(() => {
    throw new Error(`“${file.name}” is not an image that this browser can read: choose a JPEG, PNG or WebP.`)
  })
  await ready
  say(`Looking at ${file.name} …`)
  await look(photo, photo.width, photo.height)
}

let stream, asked // Of the camera, while it runs; whether it was asked for
const CAMERA_PROBLEMS = {
  NotAllowedError: 'The camera was not permitted: allow it for this page in the browser’s settings, then try again.',
  NotFoundError: 'No camera was found: connect one, or choose a photo.',
  NotReadableError: 'The camera is used by another program: close that, then try again.',
}

async function useCamera() {
  if (!navigator.mediaDevices) throw new Error('Browsers give a camera only to pages on https:// or localhost.')
  const found = stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}}).catch(e => {
    throw new Error(CAMERA_PROBLEMS[e.name] ?? `The camera does not start: ${e.message}`)
  })
  stream.getVideoTracks()[0].onended = stopCamera // It was unplugged, for example
  $('camera').textContent = 'Stop the camera'
  $('status').ariaLive = 'off' // A screen reader would read out every frame
  try {
    await ready
    const video = Object.assign(document.createElement('video'), {srcObject: stream, muted: true, playsInline: true})
    await video.play()
    while (asked && stream === found) { // Not if a photo was chosen meanwhile
      await look(video, video.videoWidth, video.videoHeight)
      await new Promise(resolve => setTimeout(resolve)) // Lets the page answer
    }
  } finally { if (stream === found) stopCamera() }
}

function stopCamera() {
  stream?.getTracks().forEach(track => track.stop())
  stream = asked = null
  $('camera').textContent = 'Use the camera'
  $('status').ariaLive = 'polite'
}

// ---- What one sees

function nameOf(label) { return about.names?.[label] ?? `class ${label}` }
function colorOf(label) { return `hsl(${label*137 % 360} 85% 65%)` }
function say(text) { $('status').textContent = text }

function draw() {
  if (!shown) return
  const {width, height} = reader, canvas = $('picture'), context = canvas.getContext('2d')
  const kept = suppress(shown.found).map(d => ({...d, box: toImage(d.box, width, height)}))
  Object.assign(canvas, {width, height, hidden: false})
  context.drawImage(reader, 0, 0)
  const unit = width/canvas.clientWidth // Pixels of the image in one of the page
  for (const d of [...kept].reverse()) drawBox(context, d, unit) // The best on top
  const counts = new Map()
  for (const {label} of kept) counts.set(label, (counts.get(label) ?? 0) + 1)
  const texts = [...counts].map(([label, n]) => nameOf(label) + (n > 1 ? ` × ${n}` : ''))
  const objects = texts.join(', ') || 'Nothing found'
  canvas.ariaLabel = `The picture, with boxes around what was found: ${objects}`
  say(`${objects} (${Math.round(shown.ms)} ms with ${BACKENDS[network.backend]})`)
  $('found').replaceChildren(...kept.map(listed))
}

function drawBox(context, {box: [left, top, right, bottom], label, score}, unit) {
  const text = `${nameOf(label)} ${score.toFixed(2)}`, line = 20*unit
  context.font = `${14*unit}px system-ui, sans-serif`
  context.lineWidth = 3*unit
  context.strokeStyle = context.fillStyle = colorOf(label)
  context.strokeRect(left, top, right - left, bottom - top)
  const width = context.measureText(text).width + 8*unit
  const x = Math.max(0, Math.min(left, context.canvas.width - width)), y = top >= line ? top - line : top
  context.fillRect(x, y, width, line)
  context.fillStyle = 'black'
  context.fillText(text, x + 4*unit, y + 15*unit)
}

function listed({box, label, score}) {
  const item = document.createElement('li')
  item.textContent = `${nameOf(label)} ${score.toFixed(2)}`
  item.title = `left, top, right, bottom: ${box.map(v => v.toFixed(1)).join(', ')}`
  item.style.borderColor = colorOf(label)
  return item
}

// ---- What one does: one thing after the other, and what goes wrong is said

let turn = Promise.resolve()
function attempt(task) {
  turn = turn.then(async () => {
    $('problem').textContent = ''
    try { await task() } catch (error) {
      say('')
      $('problem').textContent = error.message
    }
  })
}

function choose(file) {
  if (!file) return
  stopCamera()
  attempt(() => showPhoto(file))
}

function describeScore() {
  const scores = [about.conf].flat(), low = Math.min(...scores), high = Math.max(...scores)
  const trained = low === high ? low.toFixed(2) : `${low.toFixed(2)} to ${high.toFixed(2)}, by class`
  if (chosenScore === null) $('score').value = low
  $('score-text').value = $('score').ariaValueText = chosenScore === null ? trained : chosenScore.toFixed(2)
}

$('file').onchange = event => choose(event.target.files[0])
$('file').onclick = event => { event.target.value = '' } // The same photo may be chosen again
$('camera').onclick = () => { if (stream) return stopCamera(); asked = true; attempt(() => asked && useCamera()) }
$('score').oninput = event => { chosenScore = Number(event.target.value); describeScore(); draw() }
addEventListener('dragover', event => event.preventDefault())
addEventListener('drop', event => { event.preventDefault(); choose(event.dataTransfer.files[0]) })
addEventListener('resize', draw)
describeScore()
const ready = load()
attempt(async () => { await ready; say(`Ready, with ${BACKENDS[network.backend]}.`) })
