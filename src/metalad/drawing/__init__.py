"""Pictures for people: heat maps, overlays, plots, and the HTML page that shows them."""
