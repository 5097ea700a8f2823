"use strict";
(() => {
  const tabs = document.getElementById("axes");
  const buttons = [...tabs.querySelectorAll("button")];

  function choose(chosen) {
    for (const button of buttons) {
      const selected = button === chosen;
      button.setAttribute("aria-selected", selected);
      button.tabIndex = selected ? 0 : -1;
      document.getElementById(button.getAttribute("aria-controls")).hidden = !selected;
    }
  }

  for (const button of buttons) button.addEventListener("click", () => choose(button));
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
    choose(next);
    next.focus();
  });
  tabs.hidden = false; // without this script the curves over steps are shown alone
})();
