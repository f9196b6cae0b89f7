/** What this page sends, whoever on it sends it: `fetch` and `XMLHttpRequest` are watched, not changed. */

const FAILED = "failed";

/**
 * @param {(call: {method: string, path: string}) => (status: number|string, ms: number) => void} begin Called as a call
 *   is sent; what it returns is called as the call ends.
 */
export function watchCalls(begin) {
  watchFetch(begin);
  watchXhr(begin);
}

const pathOf = (url) => new URL(url, location.href).pathname;

function watchFetch(begin) {
  const original = window.fetch;
  window.fetch = async (input, options) => {
    const request = input instanceof Request ? input : null;
    const method = (options?.method ?? request?.method ?? "GET").toUpperCase();
    const end = begin({ method, path: pathOf(request?.url ?? input) });
    const started = performance.now();
    let status = FAILED;
    try {
      const answer = await original(input, options);
      status = answer.status;
      return answer;
    } catch (error) {
      if (error.name === "AbortError") status = "left";
      throw error;
    } finally {
      end(status, performance.now() - started);
    }
  };
}

function watchXhr(begin) {
  const { open, send } = XMLHttpRequest.prototype;
  const asked = new WeakMap();
  XMLHttpRequest.prototype.open = function (method, url, ...rest) {
    asked.set(this, { method: method.toUpperCase(), path: pathOf(url) });
    return open.call(this, method, url, ...rest);
  };
  XMLHttpRequest.prototype.send = function (body) {
    const end = begin(asked.get(this));
    const started = performance.now();
    this.addEventListener("loadend", () => end(this.status || FAILED, performance.now() - started), { once: true });
    return send.call(this, body);
  };
}
