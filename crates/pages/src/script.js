// What makes the pages handier. Every page works without it.
"use strict";
(() => {
  const say = (() => {
    const status = document.createElement("p");
    status.className = "unseen";
    status.setAttribute("role", "status");
    document.body.append(status);
    return (text) => { status.textContent = text; };
  })();

  const select = (node) => {
    const range = document.createRange();
    range.selectNodeContents(node);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  };

  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        // Only pages over HTTPS or on this machine may write to the clipboard.
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
        say("Copied");
        setTimeout(() => { button.textContent = "Copy"; }, 2000);
      } catch {
        select(code);
        say("Selected: copy with the keyboard");
      }
    });
  }

  for (const table of document.querySelectorAll("table[data-filter]")) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 8) continue;
    const label = document.createElement("label");
    label.className = "filter";
    label.textContent = "Filter this page ";
    const input = document.createElement("input");
    input.type = "search";
    label.append(input);
    table.before(label);
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      let shown = 0;
      for (const row of rows) {
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
        if (!row.hidden) shown += 1;
      }
      say(`${shown} of ${rows.length} rows`);
    });
  }
})();
