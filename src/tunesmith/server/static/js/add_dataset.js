// The page that adds a dataset: what was uploaded is shown.

import { at } from "./console.js";
import { takeFiles } from "./upload.js";

const card = document.querySelector("#upload-card");
takeFiles(card, {
  columns: () => card.querySelector("[data-columns]").value.trim(),
  added: (id) => { location.href = at(`/datasets/${encodeURIComponent(id)}`); },
});
