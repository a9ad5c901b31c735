"""The page that the explorer's parts are put into."""

STYLE = """
:root { color-scheme: light; }
body { font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #222;
       background: #f4f5f7; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 16px; padding: 10px 18px;
         background: #fff; border-bottom: 1px solid #dfe2e6; }
h1 { font-size: 18px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 14px; margin: 0 0 8px; }
header p, .hint { margin: 0; color: #5b616a; }
main { display: grid; gap: 12px; padding: 12px;
       grid-template-columns: minmax(270px, 310px) minmax(0, 1fr) minmax(0, 1fr);
       grid-template-areas: "gates view view" "gates left right" "gates legend legend"
                            "compare compare compare"; }
section { background: #fff; border: 1px solid #dfe2e6; border-radius: 8px; padding: 12px;
          min-width: 0; }
#gates { grid-area: gates; } #view { grid-area: view; } #left { grid-area: left; }
#right { grid-area: right; } #legend { grid-area: legend; padding: 6px 12px; }
#compare { grid-area: compare; }
.compared { display: grid; gap: 12px; grid-template-columns: minmax(0, 1fr) minmax(0, 1.25fr); }
@media (max-width: 900px) {
  main { grid-template-columns: minmax(0, 1fr); padding: 8px;
         grid-template-areas: "view" "left" "right" "legend" "gates" "compare"; }
  .compared { grid-template-columns: minmax(0, 1fr); }
}
"""

PAGE = (
    """{% from macros import embed %}
{% extends base %}
{% block preamble %}
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<style>"""
    + STYLE
    + """</style>
{% endblock %}
{% block contents %}
<header>
  <h1>{{ run_name | e }}</h1>
  <p>{{ "{:,}".format(n_cells) }} cells. Choose a shape, draw it around cells on either plot, and see
  what sets them apart below.</p>
</header>
<main>
  <section id="gates" aria-label="Gates"><h2>Gates</h2>{{ embed(roots.gates) }}</section>
  <section id="view" aria-label="What is shown">{{ embed(roots.view) }}</section>
  <section id="left" aria-label="Left plot of the cells">{{ embed(roots.left) }}</section>
  <section id="right" aria-label="Right plot of the cells">{{ embed(roots.right) }}</section>
  <section id="legend" aria-label="Colours">{{ embed(roots.legend) }}</section>
  <section id="compare" aria-label="What differs"><h2>What sets the gated cells apart</h2>
    {{ embed(roots.comparison) }}
    <div class="compared">
      <div>{{ embed(roots.volcano) }}</div>
      <div>{{ embed(roots.differences) }}</div>
    </div>
  </section>
</main>
{% endblock %}
"""
)
