'use strict'
document.addEventListener('DOMContentLoaded', () => {
    // Folds are called by their text, "Checks" for example
    for (const summary of document.querySelectorAll('details.hide > summary')) summary.removeAttribute('aria-label')
    // The current page stands in the middle of the sidebar
    const sidebar = document.querySelector('.sidebar-scroll'), current = sidebar?.querySelector('.current-page')
    if (!current) return
    const middle = current.getBoundingClientRect().top - sidebar.getBoundingClientRect().top
    if (middle > sidebar.clientHeight*.8) sidebar.scrollTop = middle - sidebar.clientHeight/2
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

addEventListener('load', () => {
    const observer = new ResizeObserver(entries => entries.forEach(entry => linkToFullSize(entry.target)))
    for (const picture of document.querySelectorAll('.cell_output img')) observer.observe(picture)
})
