'use strict'
document.addEventListener('DOMContentLoaded', () => {
    // Folds are called by their text, "Checks" for example
    for (const summary of document.querySelectorAll('details.hide > summary')) summary.removeAttribute('aria-label')
    for (const word of document.querySelectorAll('code.literal .pre')) {
        word.classList.toggle('long', word.textContent.length > 30)
    }
    // The current page stands in the middle of the sidebar
    const sidebar = document.querySelector('.sidebar-scroll'), current = sidebar?.querySelector('.current-page')
    if (!current) return
    const middle = current.getBoundingClientRect().top - sidebar.getBoundingClientRect().top
    const top = middle - sidebar.clientHeight/2
    if (middle > sidebar.clientHeight*.8) sidebar.scrollTo({top, behavior: 'instant'}) // Furo's style would let it glide
})

// Pictures that are shown smaller than they are open in full size; a phone that is turned may show them all
function linkToFullSize(picture) {
    const smaller = picture.width < picture.naturalWidth, link = picture.closest('a')
    if (smaller && !link) {
        const made = document.createElement('a')
        made.href = picture.src
        made.className = 'full-size'
        made.setAttribute('aria-label', `Full size: ${picture.alt}`)
        picture.replaceWith(made)
        made.append(picture)
    } else if (!smaller && link?.className === 'full-size') link.replaceWith(picture)
}

// A table that is too wide is set tighter; if that is not enough, a phone lists its rows, unless they are many.
// For screen readers, it stays a table
const ROLES = {table: 'table', thead: 'rowgroup', tbody: 'rowgroup', tr: 'row', th: 'columnheader', td: 'cell'}
function fitTable(wrapper) {
    wrapper.classList.remove('tight', 'listed')
    const isWide = () => wrapper.scrollWidth > wrapper.clientWidth
    if (isWide()) wrapper.classList.add('tight')
    const cells = wrapper.querySelectorAll('tbody td')
    if (!isWide() || cells.length > 100) return
    const heads = wrapper.querySelectorAll('thead th')
    for (const cell of cells) cell.dataset.head = heads[cell.cellIndex]?.textContent ?? ''
    for (const name in ROLES) wrapper.querySelectorAll(name).forEach(part => part.setAttribute('role', ROLES[name]))
    wrapper.classList.add('listed')
}

// A formula that is too wide shrinks
function fitFormula(formula) {
    formula.style.fontSize = ''
    const part = formula.clientWidth/formula.scrollWidth
    if (part < 1) formula.style.fontSize = `${Math.max(70, Math.floor(100*part))}%`
}

// Where they do not fit, aligned columns are set smaller, down to 6 pixels, in which 80 columns fit
// on a phone; other long lines break
function fitOutput(block) {
    block.style.fontSize = ''
    const aligned = block.textContent.split('\n').filter(line => /\S {2,}\S/.test(line))
    if (aligned.length < 2) return
    const probe = block.appendChild(Object.assign(document.createElement('span'), {textContent: '0'.repeat(100)}))
    probe.style.cssText = 'position: absolute; white-space: pre'
    const {paddingLeft, paddingRight, fontSize} = getComputedStyle(block), letter = probe.offsetWidth/100
    probe.remove()
    const width = .98*block.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight)
    const longest = Math.max(...aligned.map(line => line.trimEnd().length))
    const size = Math.floor(10*parseFloat(fontSize)*width/(letter*longest))/10
    if (size >= 6 && size < parseFloat(fontSize)) block.style.fontSize = `${size}px`
}

// A line that breaks goes on right of where it begins: each gets a box of its own, its indentation as padding
function hangLines(part) {
    const blocks = [...part.querySelectorAll('pre:not(:has(.code-line))')]
    document.body.classList.add('unbroken')
    const broken = blocks.filter(block => block.scrollWidth > block.clientWidth)
    document.body.classList.remove('unbroken')
    broken.forEach(splitLines)
}
function splitLines(block) {
    const lines = block.innerHTML.replace(/\n$/, '').split('\n')
    block.innerHTML = lines.map(line => {
        const [, before, blanks = '', after] = line.match(/^((?:<span><\/span>)?(?:<span[^>]*>)?)( {0,24}(?! ))?(.*)$/s)
        const words = after.replace(/(^|[\s>])(--?[a-z][\w-]*)/gi, '$1<span class="pre">$2</span>')
        const text = `${before}<span class="indent">${blanks}</span>${words}\n`
        return `<span class="code-line" style="--indent: ${blanks.length}">${text}</span>`
    }).join('')
}

// Pictures that go on to the right fade there
function showMore(output) {
    const right = () => output.scrollWidth - output.scrollLeft - output.clientWidth
    const update = () => output.classList.toggle('goes-on', right() > 2)
    output.onscroll = update
    update()
}

function fit() {
    document.querySelectorAll('.cell_output pre, .highlight-text pre').forEach(fitOutput)
    document.querySelectorAll('article').forEach(hangLines)
    document.querySelectorAll('.cell_output').forEach(showMore)
    document.querySelectorAll('article .table-wrapper').forEach(fitTable)
    window.MathJax?.startup?.promise?.then(() => document.querySelectorAll('div.math').forEach(fitFormula))
}

addEventListener('resize', fit)
document.addEventListener('toggle', event => hangLines(event.target), true) // A fold opens
addEventListener('load', () => {
    fit()
    const observer = new ResizeObserver(entries => entries.forEach(entry => linkToFullSize(entry.target)))
    for (const picture of document.querySelectorAll('.cell_output img')) observer.observe(picture)
})
