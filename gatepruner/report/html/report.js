"use strict";
(() => {
  const one = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const data = JSON.parse(one("data").textContent);
  const slider = one("slider");
  const blocks = all(".block");
  const rows = all("tbody tr");
  const cells = all("#readings dd");
  let curve = data.curves[0];
  let pause = 0;

  const state = () => curve.states[Number(slider.value)];

  // What a screen reader says once the slider rests; the slider itself says only its title.
  function say(text) {
    clearTimeout(pause);
    pause = setTimeout(() => { one("said").textContent = text; }, 400);
  }

  function drawBlock(block, index) {
    const place = curve.order.indexOf(index);
    const gone = place >= 0 && place < state().removed;
    const number = data.ranked ? `number ${place + 1} to go, ` : "";
    const fate = place < 0 ? "kept in every state" : number + (gone ? "removed" : "kept");
    const [share, channels] = state().left[index] || [1, ""];
    const text = [block.dataset.about, fate, channels].filter(Boolean).join("; ");
    block.querySelector("rect").setAttribute("width", data.width * share);
    block.classList.toggle("gone", gone);
    block.title = text;
    block.setAttribute("aria-label", text);
  }

  function show() {
    const { title, values, command, point } = state();
    slider.setAttribute("aria-valuetext", title);
    one("state").textContent = title;
    cells.forEach((cell, index) => { cell.textContent = values[index]; });
    one("command").textContent = command;
    one("getting").hidden = !command;
    one("copied").textContent = "";
    blocks.forEach(drawBlock);
    const [x, y] = point;
    const mark = one("mark");
    const top = Number(mark.dataset.top);
    mark.setAttribute("transform", `translate(${x} ${y})`);
    mark.firstElementChild.setAttribute("y1", top - y);
    mark.firstElementChild.setAttribute("y2", Number(mark.dataset.bottom) - y);
    rows.forEach((row, index) => {
      const shown = index === Number(slider.value);
      if (shown) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    });
    say(`${title}: ${values.slice(0, 3).join(", ")}`);
  }

  // The first state in which the block is gone.
  function goTo(index) {
    const place = curve.order.indexOf(index);
    const first = place < 0 ? -1 : curve.states.findIndex((each) => each.removed > place);
    if (first >= 0) slider.value = first;
    show();
    detail(blocks[index]);
  }

  function detail(block) {
    one("detail").textContent = block.title;
  }

  // One block is in the order of Tab; arrow keys lead to the others.
  function move(event) {
    const index = blocks.indexOf(event.target);
    const last = blocks.length - 1;
    const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: last }[event.key];
    if (index < 0 || to === undefined || !blocks[to]) return;
    event.preventDefault();
    blocks[index].tabIndex = -1;
    blocks[to].tabIndex = 0;
    blocks[to].focus();
  }

  async function copy() {
    const command = one("command");
    try {
      await navigator.clipboard.writeText(command.textContent);
      one("copied").textContent = "copied";
    } catch {  // not in every browser for a file
      getSelection().selectAllChildren(command);
      one("copied").textContent = document.execCommand("copy") ? "copied"
        : "selected: copy it with Ctrl+C or ⌘C";
    }
  }

  slider.addEventListener("input", show);
  one("copy").addEventListener("click", copy);
  one("network").addEventListener("keydown", move);
  blocks.forEach((block, index) => {
    block.tabIndex = index ? -1 : 0;
    block.addEventListener("click", () => goTo(index));
    block.addEventListener("focus", () => detail(block));
    block.addEventListener("pointerenter", () => detail(block));
  });
  all("input[type=radio]").forEach((input) => input.addEventListener("change", () => {
    curve = data.curves[Number(input.value)];
    show();
  }));
  all("input[type=checkbox]").forEach((input) => input.addEventListener("change", () => {
    one("lines").querySelector(`[data-curve="${input.value}"]`)
      .classList.toggle("off", !input.checked);
  }));
  all("#choose, #copy, .legend [hidden]").forEach((part) => { part.hidden = false; });
  blocks.forEach(drawBlock);
})();
