// Pictures from outside: dropped, pasted or chosen.

import { find } from "./dom.js";

const SMALL = 96; // pixels below which a picture is shown as squares, not smoothed

let address = null;
let broken = false;

export function showPicture(blob) {
  if (address) URL.revokeObjectURL(address);
  address = blob && URL.createObjectURL(blob);
  const shown = find("shown");
  shown.hidden = true;
  broken = false;
  find("invitation").hidden = blob !== null;
  if (!blob) return shown.removeAttribute("src");
  shown.alt = "The picture you ask about";
  shown.src = address;
  return undefined;
}

/** Some formats are read by the server and not by browsers: then the picture as the model sees it stands in. */
export function standIn(seen) {
  if (broken) find("shown").src = seen;
}

const images = (data) => [...(data?.files ?? [])];

export function startPictures(ask) {
  const shown = find("shown");
  shown.addEventListener("load", () => {
    shown.classList.toggle("pixels", Math.max(shown.naturalWidth, shown.naturalHeight) < SMALL);
    shown.hidden = false;
    find("invitation").hidden = true;
  });
  shown.addEventListener("error", () => {
    if (!shown.hasAttribute("src")) return;
    broken = true;
    find("invitation").hidden = false;
  });

  find("file").addEventListener("change", () => {
    const [file] = find("file").files;
    if (file) ask(file);
    find("file").value = ""; // so that the same file can be chosen again
  });

  const bring = ([file]) => file && ask(file);
  document.addEventListener("paste", (event) => bring(images(event.clipboardData)));

  const over = (is) => find("drop").classList.toggle("over", is);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    over(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) over(false);
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    bring(images(event.dataTransfer));
  });
}
