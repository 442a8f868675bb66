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
