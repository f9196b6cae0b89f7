/**
 * The host application of the demo. It integrates in three ways and shows what each sends and how it ends.
 * It holds no credential: the third way's API key stays with the host's server (`service/api/demo.py`).
 */
import { watchCalls } from "./calls.js";

const CLIENT_ID = document.body.dataset.clientId;
const KEPT = "demo:calls";
const MOST_KEPT = 200;
const WHO = { page: "Page", server: "Host's server", tab: "Tab" };
const ENDINGS = { OM200: "Linked", OM400: "Closed or refused", OM410: "Credentials refused", OM500: "Failed" };

const byId = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Ids are long, and say nothing to people. */
const short = (path) =>
  path
    .split("/")
    .map((part) => (part.length > 20 ? `${part.slice(0, 8)}…${part.slice(-4)}` : part))
    .join("/");

// Calls

/** The calls of this tab, also from before it went to the hosted page. */
class CallLog {
  #rows = byId("calls");
  #calls = [];

  constructor() {
    for (const call of this.#kept()) this.#add(call);
    this.#note();
  }

  /** A call begins; the answer tells how it ended. */
  begin(who, { method, path }) {
    const call = this.#add({ who, method, path, status: "…", ms: null, times: 1 });
    return (status, ms) => {
      Object.assign(call, { status, ms: ms === null ? null : Math.round(ms) });
      this.#merge(call);
      this.#draw(call);
      this.#keep();
    };
  }

  /** A call that has ended already. */
  tell(who, { method, path, status, ms }) {
    this.begin(who, { method, path })(status, ms);
  }

  clear() {
    this.#calls = [];
    this.#rows.replaceChildren();
    this.#keep();
    this.#note();
  }

  #add(call) {
    call.row = make("tr");
    this.#calls.push(call);
    this.#rows.append(call.row);
    this.#draw(call);
    this.#note();
    const box = this.#rows.closest(".scroll");
    box.scrollTop = box.scrollHeight;
    return call;
  }

  /** The vendor's script polls; one line tells it. */
  #merge(call) {
    const before = this.#calls[this.#calls.indexOf(call) - 1];
    const same = before && ["who", "method", "path", "status"].every((name) => before[name] === call[name]);
    if (!same) return;
    call.times += before.times;
    before.row.remove();
    this.#calls.splice(this.#calls.indexOf(before), 1);
  }

  #draw({ row, who, method, path, status, ms, times }) {
    const good = status === "…" || status < 400 || who === "tab";
    row.className = who;
    row.replaceChildren(
      make("td", {}, make("span", { className: "who", textContent: WHO[who] })),
      make("td", { className: "call" }, make("b", { textContent: method }), " ", make("span", { textContent: short(path), title: path })),
      make("td", { className: good ? "status" : "status bad", textContent: times > 1 ? `${status} ×${times}` : status }),
      make("td", { className: "ms", textContent: ms ?? "" }),
    );
  }

  #note() {
    const none = this.#calls.length === 0;
    byId("no-calls").hidden = !none;
    byId("table").hidden = byId("clear").hidden = none;
  }

  #kept() {
    try {
      return JSON.parse(sessionStorage.getItem(KEPT)) ?? [];
    } catch {
      return [];
    }
  }

  #keep() {
    const ended = this.#calls.filter((call) => call.status !== "…").slice(-MOST_KEPT);
    try {
      sessionStorage.setItem(KEPT, JSON.stringify(ended.map(({ row, ...call }) => call)));
    } catch {
      // Storage may be forbidden; then the log ends with the page.
    }
  }
}

// Outcome

function showOutcome(way, outcome, told) {
  const status = outcome.status ?? "…";
  byId("badge").textContent = status;
  byId("badge").className = `badge ${status}`;
  byId("ending").textContent = `${ENDINGS[status] ?? "Not ended yet"}.`;
  byId("told").textContent = `${way}. ${told}`;
  byId("json").textContent = JSON.stringify(outcome, null, 2);
  byId("hint").hidden = status !== "OM410";
  byId("result").hidden = false;
  byId("nothing").hidden = true;
  byId("outcome-title").focus();
}

const BY_BROWSER = "As the promise in the browser settled; a host's server verifies it with GET /v1/sessions/{id}.";
const BY_SERVER = "Verified by the host's server with GET /v1/sessions/{id}; what the address said was not believed.";

/** One way at a time; its button waits meanwhile. */
function onStart(id, start) {
  const button = byId(id);
  button.addEventListener("click", async () => {
    if (button.getAttribute("aria-disabled") === "true") return;
    button.setAttribute("aria-disabled", "true");
    try {
      await start();
    } finally {
      button.removeAttribute("aria-disabled");
    }
  });
}

// The three ways

const calls = new CallLog();
watchCalls((call) => calls.begin("page", call));

onStart("start-widget", async () => {
  const opening = new Omnimetic("widget", { clientId: CLIENT_ID, secret: "unused" }).open();
  showOutcome("The vendor's widget", await opening.catch((rejected) => rejected), BY_BROWSER);
});

onStart("start-client", async () => {
  const opening = new Omniconnect("client", { clientId: CLIENT_ID, hostName: "Sunny Solar" }).open();
  showOutcome("omniconnect.js", await opening.catch((rejected) => rejected), BY_BROWSER);
});

onStart("start-hosted", async () => {
  const answer = await askServer("/demo/sessions", { method: "POST" });
  if (!answer.session) return showOutcome("The hosted page", answer, "As the host's server was told.");
  calls.tell("tab", { method: "GO", path: new URL(answer.session.url).pathname, status: "", ms: null });
  location.assign(answer.session.url);
});

/** Call the host's own server, which tells what it called in turn. */
async function askServer(path, options) {
  try {
    const answer = await (await fetch(path, options)).json();
    for (const call of answer.serverCalls ?? []) calls.tell("server", call);
    return answer;
  } catch (error) {
    return { status: "OM500", message: `The demo's server cannot be reached: ${error.message}` };
  }
}

/** The hosted page sent the person back here; its word is not taken. */
async function comeBack() {
  const told = new URLSearchParams(location.search);
  const id = told.get("sessionId");
  if (!id) return;
  history.replaceState(null, "", location.pathname);
  calls.tell("tab", { method: "BACK", path: `/?status=${told.get("status") ?? ""}`, status: "", ms: null });
  const { session, serverCalls, ...envelope } = await askServer(`/demo/sessions/${encodeURIComponent(id)}`);
  const going = session && { status: undefined, state: session.state, note: "The session has not ended." };
  showOutcome("The hosted page", session?.outcome ?? going ?? envelope, BY_SERVER);
}

// The rest of the page

byId("clear").addEventListener("click", () => {
  calls.clear();
  byId("calls-title").focus();
});

for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      byId("copied").textContent = `Copied ${button.dataset.copy}`;
      button.classList.add("done");
      setTimeout(() => button.classList.remove("done"), 1500);
    } catch {
      getSelection().selectAllChildren(button);
    }
  });
}

comeBack();
