// The search runs in a worker, which browsers refuse to pages that were opened as files: there, a hidden frame takes its place.
if (location.protocol === "file:") window.Worker = class extends EventTarget {
  constructor(url) {
    super()
    const frame = document.createElement("iframe")
    frame.style.display = "none"
    document.body.append(frame)
    this.window = frame.contentWindow
    addEventListener("message", e => { if (e.source === this.window) this.dispatchEvent(new MessageEvent("message", { data: e.data })) })
    this.ready = new Promise(done => frame.addEventListener("load", done))
    this.window.document.open()
    this.window.document.write(`<script>
      postMessage = data => parent.postMessage(data, "*")
      importScripts = (...urls) => Promise.all(urls.map(src => new Promise(done => document.body.append(Object.assign(document.createElement("script"), { src, onload: done })))))
    </` + `script><script src="${url}"></` + `script>`)
    this.window.document.close()
  }
  postMessage(data) { this.ready.then(() => this.window.dispatchEvent(new MessageEvent("message", { data }))) }
}
