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

  // Pages with figures of this moment follow the server: the same page is read again, and what has
  // changed takes the place of what was there. So there is one way to write a figure, and one
  // permission to see it.
  const live = document.querySelector("[data-live]");
  if (live) {
    const EVERY = 5_000, LONGEST = 60_000, PATIENCE = 15_000;
    // Behind a load balancer, another server may answer. Its figures are others: it gets its turn
    // when the one that is shown has not answered so many times.
    const OTHERS = 5;
    let pause = EVERY, timer = 0, isPaused = false, isAsking = false, others = 0;
    const line = document.createElement("p");
    line.className = "live";
    const note = document.createElement("span");
    const button = document.createElement("button");
    button.type = "button";
    line.append(button, note);
    live.before(line);

    const wait = () => {
      clearTimeout(timer);
      if (!isPaused && !document.hidden) timer = setTimeout(refresh, pause);
    };
    const show = (text) => {
      button.textContent = isPaused ? "Follow" : "Pause";
      note.textContent = text;
    };
    const follow = () => show(isPaused ? "The figures stand still." : `The figures are read again every ${EVERY / 1000} seconds.`);

    const replace = (fresh) => {
      // Nothing changes under a selection.
      others = fresh.dataset.live === live.dataset.live ? 0 : others + 1;
      if (others > 0 && others <= OTHERS) return;
      others = 0;
      live.dataset.live = fresh.dataset.live;
      const chosen = window.getSelection();
      if (!chosen.isCollapsed && live.contains(chosen.anchorNode)) return;
      const [before, after] = [[...live.children], [...fresh.children]];
      if (before.length !== after.length) {
        if (!live.contains(document.activeElement)) live.replaceChildren(...after);
        return;
      }
      before.forEach((old, place) => {
        // Nothing is taken away from under the keyboard.
        if (!old.isEqualNode(after[place]) && !old.contains(document.activeElement)) old.replaceWith(after[place]);
      });
    };

    const refresh = async () => {
      if (isAsking) return;
      isAsking = true;
      clearTimeout(timer);
      try {
        const request = { headers: { accept: "text/html" }, redirect: "error", signal: AbortSignal.timeout(PATIENCE) };
        const answer = await fetch(location.href, request);
        if (answer.status === 404) {
          isPaused = true;
          show("The session has ended: sign in again.");
          return;
        }
        if (!answer.ok) throw new Error(answer.status);
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        if (!isPaused) replace(page.querySelector("[data-live]"));
        pause = EVERY;
        follow();
      } catch {
        pause = Math.min(2 * pause, LONGEST);
        if (!isPaused) show(`No answer. The next try is in ${pause / 1000} seconds.`);
      } finally {
        isAsking = false;
        wait();
      }
    };

    button.addEventListener("click", () => {
      isPaused = !isPaused;
      pause = EVERY;
      follow();
      if (isPaused) clearTimeout(timer);
      else refresh();
    });
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) clearTimeout(timer);
      else if (!isPaused) refresh();
    });
    follow();
    wait();
  }
})();
