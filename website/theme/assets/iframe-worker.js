// Browsers start no worker for a page that is opened from disk. The theme's search runs in one, so there this class
// takes its place: the worker's script in a hidden frame, with messages as events. `IFrameWorker` is the name that the
// theme's worker looks for.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inner = frame.contentWindow
      this.inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = this.inner.document.createElement("script")
      script.src = new URL(url, location.href)
      script.onload = () => {
        this.isReady = true
        this.waiting.forEach(data => this.postMessage(data))
      }
      this.inner.document.body.append(script)
    }

    postMessage(data) {
      if (this.isReady) this.inner.dispatchEvent(new MessageEvent("message", { data }))
      else this.waiting.push(data)
    }
  }
}
