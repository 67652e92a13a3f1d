// Runs inside a page and returns what is wrong with it, one sentence per fault.
const faults = [];

const unset = document.querySelectorAll("span.math:not(:has(mjx-container)), div.math:not(:has(mjx-container))");
if (unset.length) faults.push(`${unset.length} formulas were not set, first: ${unset[0].textContent}`);

const wrong = document.querySelector("mjx-merror");
if (wrong) faults.push(`a formula is an error: ${wrong.textContent}`);

// Formulas and Markdown that stayed as typed. Code may contain such signs.
const typed = /\$[^\s$][^$]*\$|\\\(|\\\[|\*\*|`|\]\(/;
const texts = document.createTreeWalker(document.querySelector("article") ?? document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const text = texts.currentNode;
  if (text.parentElement.closest("pre, code, dt.sig, script, style, mjx-container")) continue;
  if (typed.test(text.data)) faults.push(`text that was not rendered: ${text.data.trim().slice(0, 80)}`);
}

for (const image of document.images) {
  if (image.complete && !image.naturalWidth) faults.push(`a broken image: ${image.getAttribute("src")}`);
  if (!image.hasAttribute("alt")) faults.push(`an image without words: ${image.getAttribute("src")}`);
}

// Text of a figure is drawn in points at 110 dots per inch; on the page it is scaled with the image.
const LEAST = 9;
for (const image of document.querySelectorAll("img[data-text]")) {
  const natural = (image.dataset.text * 110) / 72;
  const shown = (natural * image.getBoundingClientRect().width) / image.naturalWidth;
  if (shown < LEAST - 0.05) faults.push(`a figure's text is ${shown.toFixed(1)} pixels high: ${image.src}`);
  if (!image.closest("a[href]")) faults.push(`a figure without a link to its full size: ${image.src}`);
}

for (const slider of document.querySelectorAll("figure.frames")) {
  const [image, input, output] = ["img", "input", "output"].map((tag) => slider.querySelector(tag));
  const shown = [];
  for (let n = 0; n <= input.max; n++) {
    input.value = n;
    input.dispatchEvent(new Event("input"));
    shown.push(`${image.src} ${image.alt} ${output.textContent} ${input.getAttribute("aria-valuetext")}`);
  }
  if (new Set(shown).size <= input.max) faults.push("a slider shows the same at two positions");
}

const excess = document.documentElement.scrollWidth - window.innerWidth;
if (excess > 0) faults.push(`the page is ${excess} pixels wider than the window`);

return faults;
