// Replace what is shown every few seconds, without losing the reader's place on the page.
"use strict";
async function refresh() {
  if (!document.hidden) {
    try {
      const answer = await fetch("/", { cache: "no-store" });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("status");
      if (fresh) document.getElementById("status").replaceWith(document.adoptNode(fresh));
    } catch {
      // The node is restarting: the next round will find it.
    }
  }
  setTimeout(refresh, 3000);
}
setTimeout(refresh, 3000);
