const read = (id) => JSON.parse(document.getElementById(id).textContent);
const config = read("config");
const specs = read("specs").map(([id, spec]) => [document.getElementById(id), spec]);
const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, config, tooltip: { theme: "custom" } };
// The room is kept from the beginning, so that nothing moves while one drawing after the other is made.
for (const [place, spec] of specs) place.style.minHeight = `${spec.height}px`;
(async () => {
  const failed = [];
  for (const [place, spec] of specs) {
    try {
      await vegaEmbed(place, spec, options);
      // The drawing has one name, its description; the table below it has the rest.
      place.querySelector("svg > g").setAttribute("aria-hidden", "true");
    } catch (error) {
      failed.push(String(error));
      place.textContent = "This could not be drawn; the table below holds the same.";
    }
    await new Promise((next) => setTimeout(next));
  }
  document.documentElement.dataset.failed = failed.join("; ");
  document.documentElement.dataset.drawn = specs.length - failed.length;
})();
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const part of closed) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of closed) part.open = false;
});
