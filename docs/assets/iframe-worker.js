// Browsers start no worker for a page that is opened from the file system. This stands in for one there: a hidden
// frame runs the script, and messages go to it and back.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const waiting = []
      const frame = document.createElement("iframe")
      let scope = null
      const address = new URL(url, location.href).href
      frame.hidden = true
      frame.srcdoc = `<script>
        window.importScripts = (...scripts) => scripts.reduce((before, script) => before.then(() => new Promise(done => {
          const element = document.createElement("script")
          element.src = new URL(script, ${JSON.stringify(address)}).href
          element.onload = element.onerror = done
          document.head.append(element)
        })), Promise.resolve())
        window.postMessage = data => window.parent.dispatchEvent(new CustomEvent(${JSON.stringify(address)}, {detail: data}))
      <\/script><script src="${address}"><\/script>`
      frame.onload = () => {
        scope = frame.contentWindow
        waiting.splice(0).forEach(data => this.postMessage(data))
      }
      window.addEventListener(address, event => {
        const message = new MessageEvent("message", {data: event.detail})
        this.dispatchEvent(message)
        if (this.onmessage) this.onmessage(message)
      })
      this.postMessage = data => {
        if (scope === null) waiting.push(data)
        else scope.dispatchEvent(new scope.MessageEvent("message", {data}))
      }
      this.terminate = () => frame.remove()
      document.body.append(frame)
    }
  }
}
