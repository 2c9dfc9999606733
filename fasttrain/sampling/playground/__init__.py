"""`fasttrain playground MODEL`: a page that runs a one-step generator in the browser.

    page = build_page(Path("fashion-mnist"))        # one HTML file with weights, code and kernels
    export_page(page, Path("site"))                 # site/index.html, for any web host
    with open_server(page, port=0) as server: ...   # on loopback

The way of a network into the page: `program` traces its plain form and, with `operators`, `writer`
and `memory`, writes it down as calls of a dozen operators at fixed addresses; `web/kernels.c` has
those operators, compiled to 22 kB of WebAssembly; `web/runtime.js` calls them. onnxruntime-web
would be 14 MB (27 MB with WebGPU) for the same images, and no faster.
"""

from fasttrain.sampling.playground.page import Page, build_page, export_page
from fasttrain.sampling.playground.server import open_server

__all__ = ["Page", "build_page", "export_page", "open_server"]
