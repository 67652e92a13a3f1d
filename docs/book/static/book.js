// Sliders without a kernel: each position has a picture that was drawn with the book.
for (const figure of document.querySelectorAll("figure.frames")) {
  const [link, image, input, output] = ["a", "img", "input", "output"].map((tag) => figure.querySelector(tag));
  const frames = [...figure.querySelectorAll("li")];
  const show = () => {
    const frame = frames[input.value];
    const { src, label } = frame.dataset;
    image.src = link.href = src;
    image.alt = frame.textContent;
    output.textContent = label;
    input.setAttribute("aria-valuetext", label);
  };
  const fetchAll = () => frames.forEach((frame) => (new Image().src = frame.dataset.src));
  input.addEventListener("pointerenter", fetchAll, { once: true });
  input.addEventListener("focus", fetchAll, { once: true });
  input.addEventListener("input", show);
}

// What is wider than its box: a fading edge until its end is reached, and the arrow keys work.
const boxes = "a.figure, .cell_output .output, .pst-scrollable-table-container, div.math";
const mark = (box) => {
  const hidden = box.scrollWidth - box.clientWidth - box.scrollLeft;
  const scrolls = box.scrollWidth > box.clientWidth + 1;
  box.classList.toggle("scrolls", scrolls);
  box.classList.toggle("at-end", hidden < 2);
  if (scrolls && box.tagName !== "A") box.tabIndex = 0;
};
const watcher = new ResizeObserver((entries) => entries.forEach((entry) => mark(entry.target)));
for (const box of document.querySelectorAll(boxes)) {
  watcher.observe(box);
  box.addEventListener("scroll", () => mark(box), { passive: true });
}

// Buttons with words on them are named by these, not by a label that says something else.
for (const button of document.querySelectorAll(".search-button-field[aria-label]")) {
  button.removeAttribute("aria-label");
}
