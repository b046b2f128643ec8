// Browsers start no worker for a page that is opened from the disk (file://). There the search runs in a hidden
// iframe instead, behind the part of Worker that the theme uses. On a server nothing here takes effect.
"use strict";

if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const page = this.frame.contentWindow;
      addEventListener("message", (event) => {
        if (event.source === page) this.dispatchEvent(new MessageEvent("message", { data: event.data }));
      });
      page.document.open();
      page.document.write(`<body><script>
        window.postMessage = (data) => parent.postMessage(data, "*");
        window.importScripts = async (...sources) => {
          for (const src of sources)
            await new Promise((done) => document.body.append(Object.assign(document.createElement("script"), { src, onload: done })));
        };
      <\/script><script src="${url}"><\/script></body>`);
      page.document.close();
      this.ready = new Promise((done) => page.addEventListener("load", done));
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
