"use strict";
(() => {
  const KINDS = ["noisy", "restored", "clean"];
  const CLICK = 4; // screen pixels along one image pixel after a click
  const MOST = 24; // and at most
  const byId = (id) => document.getElementById(id);
  const views = JSON.parse(byId("views").textContent);
  const viewer = byId("viewer"), panes = byId("panes"), imageMenu = byId("image"), methodMenu = byId("method");
  const images = KINDS.map((kind) => byId(`pane-${kind}`));
  let zoom = 1, centreX = 0.5, centreY = 0.5; // 1 shows the whole image; the centre is in shares of the image

  const pane = () => images[0].parentElement;
  const enlargement = () => (zoom * pane().clientWidth) / images[0].width0;
  const most = () => Math.max(1, (MOST * images[0].width0) / pane().clientWidth);

  // All three images get the same transform: what is compared is always the same place.
  function place() {
    zoom = Math.min(Math.max(zoom, 1), most());
    const half = 0.5 / zoom;
    centreX = Math.min(Math.max(centreX, half), 1 - half);
    centreY = Math.min(Math.max(centreY, half), 1 - half);
    const left = (0.5 - centreX * zoom) * pane().clientWidth, top = (0.5 - centreY * zoom) * pane().clientHeight;
    for (const image of images) image.style.transform = `translate(${left}px, ${top}px) scale(${zoom})`;
    panes.classList.toggle("zoomed", zoom > 1);
    panes.classList.toggle("enlarged", enlargement() > 1);
    byId("zoom").textContent = `${Math.round(100 * enlargement())} %`;
  }

  // Zoom by a factor and keep the place under (x, y), in shares of the pane, where it is.
  function zoomBy(factor, x = 0.5, y = 0.5) {
    const before = zoom;
    zoom = Math.min(Math.max(zoom * factor, 1), most());
    centreX += (x - 0.5) * (1 / before - 1 / zoom);
    centreY += (y - 0.5) * (1 / before - 1 / zoom);
    place();
    return zoom !== before;
  }

  function move(x, y) {
    centreX += x / zoom;
    centreY += y / zoom;
    place();
  }

  function fit() {
    zoom = 1;
    place();
  }

  function show() {
    const ofImage = views.filter((view) => view.image === imageMenu.value);
    const method = methodMenu.value;
    methodMenu.replaceChildren(...ofImage.map((view) => new Option(view.method)));
    const view = ofImage.find((other) => other.method === method) || ofImage[0];
    methodMenu.value = view.method;
    KINDS.forEach((kind, index) => {
      const embedded = byId(view[kind]);
      images[index].src = embedded.src;
      images[index].alt = `${view.image}, ${view.titles[kind]}`;
      images[index].width0 = Number(embedded.getAttribute("width"));
      images[index].parentElement.style.aspectRatio = `${embedded.getAttribute("width")} / ${embedded.getAttribute("height")}`;
      byId(`title-${kind}`).textContent = view.titles[kind];
      byId(`caption-${kind}`).textContent = view.captions[kind];
    });
    place();
  }

  function position(event) {
    const box = event.target.closest(".pane").getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  // At both ends of the zoom the wheel scrolls the page as it does elsewhere.
  panes.addEventListener("wheel", (event) => {
    if (!event.target.closest(".pane")) return;
    const pixels = event.deltaY * [1, 16, 400][event.deltaMode];
    if (zoomBy(Math.exp(-0.002 * pixels), ...position(event))) event.preventDefault();
  }, { passive: false });

  let drag = null; // where the pointer went down, and where it was last
  panes.addEventListener("pointerdown", (event) => {
    if (event.button === 0 && event.target.closest(".pane"))
      drag = { x: event.clientX, y: event.clientY, moved: false, target: event.target.closest(".pane") };
  });
  panes.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const x = event.clientX - drag.x, y = event.clientY - drag.y;
    if (!drag.moved && Math.hypot(x, y) < 4) return;
    if (!drag.moved) drag.target.setPointerCapture(event.pointerId);
    panes.classList.add("dragged");
    move(-x / pane().clientWidth, -y / pane().clientHeight);
    Object.assign(drag, { x: event.clientX, y: event.clientY, moved: true });
  });
  panes.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved) {
      if (zoom > 1) fit();
      else zoomBy(CLICK / enlargement(), ...position(event));
    }
    drag = null;
    panes.classList.remove("dragged");
  });
  panes.addEventListener("pointercancel", () => {
    drag = null;
    panes.classList.remove("dragged");
  });

  const keys = {
    "+": () => zoomBy(2), "=": () => zoomBy(2), "-": () => zoomBy(0.5), "0": fit, Escape: fit,
    ArrowLeft: () => move(-0.1, 0), ArrowRight: () => move(0.1, 0), ArrowUp: () => move(0, -0.1), ArrowDown: () => move(0, 0.1),
  };
  panes.addEventListener("keydown", (event) => {
    const action = keys[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith("Arrow") && zoom === 1) return; // nothing to move: let the page scroll
    event.preventDefault();
    action();
  });
  byId("larger").addEventListener("click", () => zoomBy(2));
  byId("smaller").addEventListener("click", () => zoomBy(0.5));
  byId("fit").addEventListener("click", fit);
  imageMenu.addEventListener("change", () => { fit(); show(); });
  methodMenu.addEventListener("change", show);
  new ResizeObserver(place).observe(panes);

  imageMenu.replaceChildren(...[...new Set(views.map((view) => view.image))].map((name) => new Option(name)));
  viewer.hidden = false;
  byId("gallery").hidden = true;
  show();
})();
