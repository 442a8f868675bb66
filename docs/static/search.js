'use strict'
// The search page: SECTIONS (docs/sections.py) ranked by BM25, at most PER_PAGE hits of a page

const PER_PAGE = 3, AT_MOST = 40
// What people type, and what our pages say
const SYNONYMS = {
    finetune: 'fine-tune', finetuning: 'fine-tune', oom: 'out of memory', webcam: 'camera', licence: 'license',
    labelling: 'labeling', normalise: 'normalize', colour: 'color', annotation: 'label', citation: 'cite',
    bibtex: 'cite', inference: 'predict', map: 'average precision', multigpu: 'several GPUs', ddp: 'torchrun',
    tta: 'augmentation', cuda: 'GPU', mixup: 'MixUp', weights: 'checkpoint'
}
// Pages that answer questions stand before pages about the parts
const KINDS = { howto: 1.6, tutorials: 1.3, explanations: 1.1, reference: .8, changelog: .5, contributing: .7 }
const STOPWORDS = new Set('a an and are as at be by do for from how i in is it my of on or the to what with'.split(' '))

const stemmer = new EnglishStemmer(), stems = new Map()
function stem(word) {
    if (!stems.has(word)) stems.set(word, stemmer.stemWord(word))
    return stems.get(word)
}
function words(text) {
    const found = [...text.toLowerCase().matchAll(/[\p{L}\p{N}_]+/gu)]
    return found.map(m => ({ stem: stem(m[0]), at: m.index, end: m.index + m[0].length }))
}
function stemsOf(text) { return words(text).map(w => w.stem) }
// One entry per section. Titles count several times; yolox_train is also found as "train"
function entry(page, top, [anchor, title, text, code], n) {
    const parts = title => stemsOf(title + ' ' + title.replaceAll('_', ' '))
    const heading = parts(title), owner = n ? parts(top) : []
    const counts = new Map()
    function add(words, weight) { for (const word of words) counts.set(word, (counts.get(word) || 0) + weight) }
    const prose = stemsOf(text)
    add(prose, 1)
    add(stemsOf(code), .2)
    add(heading, 4)
    add(owner, 2)
    const length = [...counts.values()].reduce((sum, n) => sum + n, 0)
    return { page, anchor, title, top, text, code, prose, counts, length, heading }
}
const ENTRIES = Object.entries(SECTIONS).flatMap(
    ([page, sections]) => sections.map((section, n) => entry(page, sections[0][1], section, n)))
const MEAN = ENTRIES.reduce((sum, entry) => sum + entry.length, 0)/ENTRIES.length

// For each word of the query, lists of words of which one must be found: itself, and what stands for it
function alternatives(query) {
    const terms = query.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || []
    const kept = terms.filter(term => !STOPWORDS.has(term))
    const also = term => SYNONYMS[term] ? [stemsOf(SYNONYMS[term])] : []
    return (kept.length ? kept : terms).map(term => [[stem(term)], ...also(term)])
}
function weight(word) {
    const found = ENTRIES.filter(entry => entry.counts.has(word)).length
    return found && Math.log(1 + (ENTRIES.length - found + .5)/(found + .5))
}
function contains(list, part) { return ` ${list.join(' ')} `.includes(` ${part.join(' ')} `) }

function search(query) {
    const terms = alternatives(query), phrase = terms.flatMap(([[word]]) => word)
    const weights = new Map([...new Set(terms.flat(2))].map(word => [word, weight(word)]))
    // A beginning, such as "quant", finds all words that begin so
    const known = [...new Set(ENTRIES.flatMap(entry => [...entry.counts.keys()]))]
    for (const term of terms) {
        if (term.some(words => words.every(word => weights.get(word)))) continue
        for (const word of known.filter(word => word.startsWith(term[0][0]) && term[0][0].length > 2)) {
            term.push([word])
            weights.set(word, weight(word))
        }
    }
    function score(entry) {
        const saturated = n => n*2.2/(n + 1.2*(.5 + .5*entry.length/MEAN))
        const value = words => words.every(word => entry.counts.has(word))
            ? Math.max(...words.map(word => weights.get(word)*saturated(entry.counts.get(word)))) : 0
        const values = terms.map(term => Math.max(...term.map(value)))
        const part = values.filter(value => value).length/terms.length
        let total = values.reduce((a, b) => a + b, 0)*part**4*(KINDS[entry.page.split('/')[0]] || 1)
        if (terms.length > 1 && contains(entry.prose, phrase)) total *= 1.5
        if (contains(entry.heading, phrase)) total *= 1.5
        if (entry.title.toLowerCase() == query.trim().toLowerCase()) total *= 3
        return total
    }
    const perPage = new Map(), marked = new Set(terms.flat(2))
    const hits = ENTRIES.map(entry => ({ ...entry, score: score(entry) })).filter(hit => hit.score)
    return hits.sort((a, b) => b.score - a.score).filter(hit => {
        perPage.set(hit.page, (perPage.get(hit.page) || 0) + 1)
        return perPage.get(hit.page) <= PER_PAGE && hit.score > hits[0].score/20
    }).slice(0, AT_MOST).map(hit => ({ ...hit, marked }))
}

// From the hit onwards, or from the start of its sentence if that is near
function excerpt(text, marked) {
    const all = words(text), hits = all.filter(word => marked.has(word.stem))
    const follow = hit => hits.filter(other => other.at >= hit.at && other.at < hit.at + 200)
    const near = hit => new Set(follow(hit).map(word => word.stem)).size
    const best = hits.reduce((best, hit) => near(hit) > near(best) ? hit : best, hits[0])
    const sentence = best ? Math.max(0, ...[...text.slice(0, best.at).matchAll(/[.!?:] /g)].map(m => m.index + 2)) : 0
    const start = best ? (best.at - sentence <= 40 ? sentence : best.at) : 0
    const paragraph = document.createElement('p')
    let at = start
    for (const hit of hits.filter(hit => hit.at >= start && hit.end < start + 240)) {
        const mark = document.createElement('mark')
        mark.textContent = text.slice(hit.at, hit.end)
        paragraph.append(text.slice(at, hit.at), mark)
        at = hit.end
    }
    paragraph.append(text.slice(at, start + 240))
    if (start > sentence) paragraph.prepend('… ')
    if (start + 240 < text.length) paragraph.append(' …')
    return paragraph
}

function show(query) {
    const hits = search(query), list = document.getElementById('search-results')
    const pages = new Set(hits.map(hit => hit.page)).size
    const found = hits.length ? `${hits.length} sections on ${pages} pages` : 'Nothing found'
    document.getElementById('search-summary').textContent = `${found} for “${query}”`
    list.replaceChildren(...hits.map(hit => {
        const item = document.createElement('li'), link = document.createElement('a')
        link.href = `${hit.page}.html` + (hit.title == hit.top ? '' : `#${hit.anchor}`)
        link.textContent = hit.title
        item.append(link)
        if (hit.title != hit.top) item.append(Object.assign(document.createElement('span'), { textContent: hit.top }))
        const prose = !hit.code || words(hit.text).some(word => hit.marked.has(word.stem))
        item.append(excerpt(prose ? hit.text : hit.code, hit.marked))
        return item
    }))
    // What sphinx_highlight.js marks on the page that is opened next
    localStorage.setItem('sphinx_highlight_terms', query.toLowerCase())
}

document.addEventListener('DOMContentLoaded', () => {
    const query = new URLSearchParams(location.search).get('q') || ''
    for (const field of document.querySelectorAll('input[name="q"]')) field.value = query
    if (query.trim()) show(query)
    else document.getElementById('search-summary').textContent = 'Type a few words, such as: small objects'
})
