// One list of texts for each framework, over the same client: a test bundles this for its page.
import { h, render } from "preact";
import { createElement } from "react";
import { createRoot } from "react-dom/client";
import { createApp, h as vueH } from "vue";
import * as forPreact from "pylon-client/preact";
import * as forReact from "pylon-client/react";
import * as forSvelte from "pylon-client/svelte";
import * as forVue from "pylon-client/vue";

const texts = rows => rows.map(row => row.text).join();

/** Mount a list into `element`; the answer unmounts it. */
export const mounts = {
  preact(app, options, element) {
    const List = () => h("p", null, texts(forPreact.useLive(app, "Item", options).rows), forPreact.useSession(app) ? "+" : "-");
    render(h(List), element);
    return () => render(null, element);
  },
  react(app, options, element) {
    const List = () => createElement("p", null, texts(forReact.useLive(app, "Item", options).rows), forReact.useSession(app) ? "+" : "-");
    const root = createRoot(element);
    root.render(createElement(List));
    return () => root.unmount();
  },
  vue(app, options, element) {
    const page = createApp({
      setup() {
        const { snapshot } = forVue.useLive(app, "Item", options);
        const session = forVue.useSession(app);
        return () => vueH("p", texts(snapshot.value.rows) + (session.value ? "+" : "-"));
      },
    });
    page.mount(element);
    return () => page.unmount();
  },
  svelte(app, options, element) {
    let [rows, sign] = ["", ""];
    const show = () => { element.textContent = rows + sign; };
    const ends = [
      app.live("Item", options).subscribe(snapshot => { rows = texts(snapshot.rows); show(); }), // as `$items` does
      forSvelte.session(app).subscribe(session => { sign = session ? "+" : "-"; show(); }),
    ];
    return () => { for (const end of ends) end(); element.textContent = ""; };
  },
};
globalThis.mounts = mounts;
