
// A served page: ask for news, and put the parts that have changed in the place of the old ones.
// What the reader did stays: the scroll position, sorted tables, opened details, playing videos.
{
  const INTERVAL_MS = 2000;
  const main = document.querySelector("main");
  const status = document.querySelector("header").appendChild(document.createElement("p"));
  status.className = "live";
  status.setAttribute("role", "status");

  const show = (works, text) => {
    status.classList.toggle("lost", !works);
    status.textContent = text;
  };

  const fetchPart = async (name) => {
    const answer = await fetch(`part/${encodeURIComponent(name)}`);
    if (!answer.ok) return null; // gone meanwhile; the next news say so
    const part = document.createElement("div");
    part.dataset.part = name;
    part.dataset.version = answer.headers.get("ETag").slice(1, -1);
    part.innerHTML = await answer.text();
    return part;
  };

  const keepState = (old, fresh) => {
    const pairs = (selector) => {
      const others = fresh.querySelectorAll(selector);
      return [...old.querySelectorAll(selector)].map((e, i) => [e, others[i]]).filter((p) => p[1]);
    };
    for (const [a, b] of pairs("details")) b.open = a.open;
    for (const [a, b] of pairs("table.sortable")) {
      const column = [...a.tHead.rows[0].cells].findIndex((cell) => cell.hasAttribute("aria-sort"));
      if (column < 0 || !b.tHead.rows[0].cells[column]) continue;
      sortTable(b, column, a.tHead.rows[0].cells[column].getAttribute("aria-sort"));
    }
  };

  const replace = (old, fresh) => {
    const boxes = [...old.querySelectorAll(".scroll, pre")].map((e) => [e.scrollLeft, e.scrollTop]);
    enhance(fresh);
    keepState(old, fresh);
    forget(old);
    old.replaceWith(fresh);
    fresh.querySelectorAll(".scroll, pre").forEach((e, i) => boxes[i] && e.scrollTo(...boxes[i]));
  };

  // All at once, after everything has arrived: no flicker.
  const apply = (news, fresh) => {
    const parts = [...main.children];
    const first = parts.find((part) => part.getBoundingClientRect().bottom > 0);
    const anchor = first?.dataset.part;
    const before = first?.getBoundingClientRect().top;
    const names = news.parts.map(([name]) => name);
    const here = new Map(parts.map((part) => [part.dataset.part, part]));
    for (const [name, part] of here) {
      if (names.includes(name)) continue;
      forget(part);
      part.remove();
      here.delete(name);
    }
    names.forEach((name, i) => {
      const part = fresh.get(name);
      if (!part) return;
      if (here.has(name)) replace(here.get(name), part);
      else {
        enhance(part);
        main.insertBefore(part, main.children[i] ?? null);
      }
    });
    const after = [...main.children].find((part) => part.dataset.part === anchor);
    if (after && scrollY > 0) scrollBy(0, after.getBoundingClientRect().top - before);
  };

  const refresh = async () => {
    const answer = await fetch("parts");
    if (!answer.ok) throw new Error(answer.statusText);
    const news = await answer.json();
    const versions = new Map([...main.children].map((e) => [e.dataset.part, e.dataset.version]));
    const changed = news.parts.filter(([name, version]) => versions.get(name) !== version);
    const parts = await Promise.all(changed.map(([name]) => fetchPart(name)));
    const fresh = new Map(parts.filter(Boolean).map((part) => [part.dataset.part, part]));
    if (fresh.size || versions.size !== news.parts.length) apply(news, fresh);
    document.title = document.querySelector("h1").textContent = news.title;
    document.querySelector("header p").textContent = news.subtitle;
    const time = new Date().toLocaleTimeString();
    if (news.problem) show(false, `not up to date: ${news.problem}`);
    else show(true, `live · as of ${time}`);
  };

  const loop = async () => {
    if (!document.hidden) {
      try {
        await refresh();
      } catch {
        if (!status.classList.contains("lost")) {
          const time = new Date().toLocaleTimeString();
          show(false, `no answer since ${time}; is the command that serves this page still running?`);
        }
      }
    }
    setTimeout(loop, INTERVAL_MS);
  };

  document.documentElement.style.overflowAnchor = "none"; // apply() keeps the place itself
  show(true, "live");
  loop();
}
