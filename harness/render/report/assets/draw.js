const read = (id) => JSON.parse(document.getElementById(id).textContent);
const config = read("config");
const drawn = read("specs").map(([id, spec]) =>
  vegaEmbed(document.getElementById(id), spec, {
    mode: "vega-lite",
    renderer: "svg",
    actions: false,
    ast: true,
    config,
    tooltip: { theme: "custom" },
  }).then((made) => {
    // The drawing has one name, its description; the table below it has the rest.
    document.querySelector(`#${id} svg > g`).setAttribute("aria-hidden", "true");
    return made;
  }).catch((error) => {
    document.getElementById(id).textContent = "This could not be drawn; the table below holds the same.";
    throw error;
  }),
);
Promise.allSettled(drawn).then((ends) => {
  document.documentElement.dataset.drawn = ends.filter((end) => end.status === "fulfilled").length;
  document.documentElement.dataset.failed = ends.filter((end) => end.status === "rejected").map((end) => end.reason).join("; ");
});
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const part of closed) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of closed) part.open = false;
});
