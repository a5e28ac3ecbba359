"use strict";
// Lets the reader choose which plot to see; each is drawn when it is asked for.
for (const chooser of document.querySelectorAll(".chooser")) {
  const { parts, figures } = onnxplain.read(chooser.id + "-index");
  const keys = Object.keys(figures).map((key) => key.split("\n"));
  const controls = chooser.querySelector(".choice");
  const wanted = [...keys[0]]; // the reader's choices, kept where other choices do not have them

  function offered(depth, chosen) {
    return [...new Set(keys.filter((key) => chosen.every((part, k) => part === key[k])).map((key) => key[depth]))];
  }

  function show() {
    const chosen = [];
    controls.replaceChildren();
    parts.forEach((name, depth) => {
      const options = offered(depth, chosen);
      const value = options.includes(wanted[depth]) ? wanted[depth] : options[0];
      chosen.push(value);
      controls.append(selector(name, depth, options, value));
    });
    onnxplain.draw(chooser.querySelector(".plot"), onnxplain.read(figures[chosen.join("\n")]));
  }

  function selector(name, depth, options, value) {
    const label = document.createElement("label");
    const select = document.createElement("select");
    select.append(...options.map((option) => new Option(option, option, false, option === value)));
    select.name = name;
    select.disabled = options.length < 2;
    select.addEventListener("change", () => {
      wanted[depth] = select.value;
      show();
      controls.querySelectorAll("select")[depth].focus();
    });
    label.append(name + " ", select);
    return label;
  }

  // A plot below the window is drawn when the reader comes near it, and else a little later.
  const watcher = new IntersectionObserver(([entry]) => entry.isIntersecting && once(), { rootMargin: "400px" });
  let shown = false;
  function once() {
    if (shown) return;
    shown = true;
    watcher.disconnect();
    show();
  }
  watcher.observe(chooser);
  setTimeout(once, 1500);
}
