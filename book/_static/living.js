// Draws the living figures: each is a div with its vega-lite specification inside (made by book/_ext/hitchhiker_book.py).
document.addEventListener("DOMContentLoaded", () => {
  for (const figure of document.querySelectorAll(".living-figure")) {
    const spec = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
    const place = document.createElement("div");
    place.className = "living-canvas";
    figure.append(place);
    vegaEmbed(place, spec, { actions: false, renderer: "svg" }).catch((error) => {
      place.textContent = `This figure could not be drawn: ${error.message}`;
    });
  }
});
