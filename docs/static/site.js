'use strict'
// The current page stands in the middle of the sidebar
document.addEventListener('DOMContentLoaded', () => {
    const sidebar = document.querySelector('.sidebar-scroll'), current = sidebar?.querySelector('.current-page')
    if (!current) return
    const middle = current.getBoundingClientRect().top - sidebar.getBoundingClientRect().top
    if (middle > sidebar.clientHeight*.8) sidebar.scrollTop = middle - sidebar.clientHeight/2
})
