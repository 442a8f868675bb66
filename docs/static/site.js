'use strict'
document.addEventListener('DOMContentLoaded', () => {
    // Folds are called by their text, "Checks" for example
    for (const summary of document.querySelectorAll('details.hide > summary')) summary.removeAttribute('aria-label')
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

function fit() {
    document.querySelectorAll('article .table-wrapper').forEach(fitTable)
    window.MathJax?.startup?.promise?.then(() => document.querySelectorAll('div.math').forEach(fitFormula))
}

addEventListener('resize', fit)
addEventListener('load', () => {
    fit()
    const observer = new ResizeObserver(entries => entries.forEach(entry => linkToFullSize(entry.target)))
    for (const picture of document.querySelectorAll('.cell_output img')) observer.observe(picture)
})
