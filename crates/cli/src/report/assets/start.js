// Starts the sections. One that fails keeps its static content.
(() => {
  document.body.append(SF.tip);
  for (const [id, start] of SF.sections) {
    const root = document.getElementById(id);
    const part = (role) => root.querySelector(`[data-role="${role}"]`);
    try {
      start(root, part);
      for (const element of root.querySelectorAll(".needs-script")) element.hidden = false;
    } catch (error) {
      console.error(`section ${id}:`, error);
    }
  }
  addEventListener("scroll", SF.hideTip, {passive: true});
  // Marks the section that is being read.
  const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.getAttribute("href").slice(1), link]));
  const visible = new Set();
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) visible.add(entry.target.id); else visible.delete(entry.target.id);
    }
    const current = [...links.keys()].find((id) => visible.has(id));
    for (const [id, link] of links) {
      if (id === current) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    }
  }, {rootMargin: "-25% 0px -60% 0px"});
  for (const id of links.keys()) watch.observe(document.getElementById(id));
})();
