// Drawn shapes to try the network with, as buttons below the others
'use strict'
document.title = document.querySelector('h1').textContent = 'Detector of drawn shapes'
const text = document.querySelector('h1 + p')
text.innerHTML = 'Discs, triangles, squares, stars and crosses: choose one of these drawings, or show your own to the ' +
  'camera. Pictures stay on this device. <a href="../deploy/web.html">How this page was made</a>'
const samples = document.createElement('div')
samples.className = 'controls'
for (const n of [1, 2, 3]) {
  const button = document.createElement('button'), image = document.createElement('img')
  Object.assign(image, {src: `shapes-${n}.jpg`, alt: `Drawing ${n}`, width: 88, height: 88, style: 'display: block'})
  Object.assign(button, {type: 'button', className: 'button', style: 'padding: .25rem'})
  button.append(image)
  button.onclick = async () => choose(new File([await (await fetch(image.src)).blob()], image.alt))
  samples.append(button)
}
document.querySelector('.controls').after(samples)
