// Dev mode: shows the errors of the app's files over this page, and reloads it after a change.
// The server puts this script into the pages below /app/ (pylon/api/dev/overlay.py).
(() => {
  "use strict";
  const STATE = "/client/dev/state";
  const PERIOD_MS = 500;
  const TIMEOUT_MS = 5000;
  const STYLE = `
    :host { all: initial; position: fixed; inset: 0; z-index: 2147483647; display: block;
      overflow: auto; background: rgb(0 0 0 / 60%); color-scheme: light dark;
      font: 16px/1.5 system-ui, sans-serif; }
    :host([hidden]) { display: none; }
    section { box-sizing: border-box; width: min(60rem, 100% - 2rem); margin: 1rem auto;
      padding: 1.25rem; border-radius: 0.5rem; border-top: 6px solid #c62828;
      background: #ffffff; color: #1a1a1a; }
    header { display: flex; gap: 1rem; align-items: start; justify-content: space-between; }
    h1 { margin: 0; font-size: 1.25rem; }
    h2 { margin: 1.25rem 0 0; font-size: 1rem; overflow-wrap: anywhere; }
    p { margin: 0.5rem 0 0; overflow-wrap: anywhere; }
    code, pre { font: 0.875rem/1.5 ui-monospace, monospace; }
    .place { color: #5f5f5f; }
    pre { margin: 0.5rem 0 0; padding: 0.75rem; overflow: auto; border-radius: 0.25rem;
      background: #f2f2f2; color: inherit; }
    pre.hint { white-space: pre-wrap; background: #e6f4ea; }
    button { flex: none; padding: 0.4rem 0.8rem; font: inherit; color: inherit; cursor: pointer;
      background: transparent; border: 1px solid currentColor; border-radius: 0.25rem; }
    :focus-visible { outline: 3px solid #1565c0; outline-offset: 2px; }
    @media (prefers-color-scheme: dark) {
      section { background: #1e1e1e; color: #f0f0f0; border-top-color: #ff8a80; }
      .place { color: #b5b5b5; }
      pre { background: #2b2b2b; }
      pre.hint { background: #1d3325; }
      :focus-visible { outline-color: #90caf9; }
    }`;
  const version = document.currentScript.dataset.version;
  let shown = "[]"; // the problems on the page, as JSON
  let host = null;

  const element = (name, text, className = "") => {
    const made = document.createElement(name);
    made.textContent = text;
    made.className = className;
    return made;
  };

  const frameElement = (frame) => {
    const made = element("pre", frame, "frame");
    made.tabIndex = 0; // it scrolls
    return made;
  };

  const problemParts = ({ code, message, place, frame, hint }) => [
    element("h2", message),
    element("p", place ? `${place} (${code})` : code, "place"),
    ...(frame ? [frameElement(frame)] : []),
    ...(hint ? [element("pre", hint, "hint")] : []),
  ];

  const show = (problems) => {
    const text = JSON.stringify(problems);
    if (text === shown) return;
    shown = text;
    host?.remove();
    host = null;
    if (problems.length === 0) return;
    host = document.createElement("pylon-dev-overlay");
    const root = host.attachShadow({ mode: "open" });
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
    root.adoptedStyleSheets = [sheet];
    const section = document.createElement("section");
    section.setAttribute("role", "alert");
    const header = document.createElement("header");
    const count = problems.length === 1 ? "an error" : `${problems.length} errors`;
    const hide = element("button", "Hide");
    hide.addEventListener("click", () => { host.hidden = true; });
    header.append(element("h1", `The saved app has ${count}`), hide);
    section.append(header, ...problems.flatMap(problemParts), element(
      "p", "The version from before serves on. Mend the file and save it: this message then goes.",
      "place",
    ));
    root.append(section);
    document.documentElement.append(host);
  };

  const ask = async () => {
    if (document.hidden) return;
    let state;
    try {
      const answer = await fetch(STATE, {
        cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      if (!answer.ok) return;
      state = await answer.json();
    } catch {
      return; // the server begins anew, or has ended
    }
    if (state.version === version) show(state.problems);
    else location.reload();
  };

  const repeat = async () => {
    await ask();
    setTimeout(repeat, PERIOD_MS);
  };

  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && host !== null) host.hidden = true;
  });
  void repeat();
})();
