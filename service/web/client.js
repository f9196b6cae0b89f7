/**
 * omniconnect.js: links a person's utility accounts through an omniconnect-bff service.
 * No secret, no dependency; passwords and tokens stay in memory, but for the token of an unfinished session,
 * which sessionStorage keeps until the end so that a reload or a sign-in elsewhere resumes.
 */

const SETTLED = {
  closed: { message: "Rejected: User closes the widget", status: "OM400" },
  refused: { message: "Rejected: Incorrect secret or client id", status: "OM410" },
  broken: { message: "Rejected: Internal server error", status: "OM500" },
};

const STRINGS = {
  title: "Connect your utility account",
  close: "Close",
  back: "Back",
  next: "Continue",
  retry: "Try again",
  done: "Done",
  loading: "One moment",
  consentLead: "{host} would like to read data of your utility accounts.",
  consentHost: "This site",
  consentRead: "You choose your utility and which accounts to share.",
  consentPassword: "Your password is sent once, to your utility, and is never stored.",
  consentStop: "You can close this window at any time. Nothing is shared until you confirm.",
  chooseTitle: "Choose your utility",
  search: "Search utilities",
  found: "{count} utilities",
  foundOne: "1 utility",
  foundNone: "No utility matches “{text}”.",
  unavailable: "Not available yet",
  signInTitle: "Sign in to {provider}",
  signInHint: "Use the username and password of your account at {provider}.",
  username: "Username",
  password: "Password",
  show: "Show password",
  hide: "Hide password",
  signIn: "Sign in",
  required: "Please enter your username and password.",
  wrong: "The username or password is not correct.",
  attemptsLeft: "{count} more tries before we stop, to protect your account from being locked.",
  attemptsLeftOne: "One more try before we stop, to protect your account from being locked.",
  lost: "Your connection was lost before we could sign in. Please try again.",
  oauthHint: "{provider} asks you to sign in on its own page. A new window opens. Come back here afterwards.",
  oauthOpen: "Continue at {provider}",
  oauthWaiting: "Waiting for you to finish at {provider}",
  oauthWaitingHint: "Sign in in the window that has opened. This page goes on by itself.",
  oauthAgain: "Open the window again",
  oauthDenied: "{provider} did not confirm your sign-in. You can try again.",
  working: "Signing in to {provider}",
  workingSoon: "This usually takes about 15 seconds.",
  workingLong: "Still working. Some utilities take up to a minute.",
  workingVeryLong: "This takes longer than usual. You can wait, or go back and try again later.",
  offline: "Your connection was lost. We go on as soon as it is back.",
  accountsLoading: "Looking for your accounts",
  accountsTitle: "Choose the accounts to share",
  accountsNone: "There is no service account behind this sign-in.",
  accountsAll: "Select all",
  accountsFirst: "Select the first {count}",
  meter: "Meter {number}",
  account: "Account {id}",
  link: "Share {count} accounts",
  linkOne: "Share 1 account",
  linkNone: "Choose at least one account",
  linkMany: "Choose at most {count} accounts",
  linkMost: "Up to {count} accounts can be shared. Choose which.",
  linking: "Linking your accounts",
  linkingHint: "This takes a few seconds.",
  linkedTitle: "Your accounts are connected",
  linked: "{count} accounts are now shared.",
  linkedOne: "1 account is now shared.",
  failedTitle: "That did not work",
  utilityDown: "{provider} cannot be reached right now.",
  timedOut: "{provider} did not answer in time.",
  tooMany: "Too many attempts. Please try again later.",
  unclear: "We could not confirm that your accounts were linked. Please contact {host} before trying again.",
  broken: "Something went wrong on our side.",
  expired: "This took too long. Please start again.",
  other: "Choose another utility",
  more: "Add another utility",
};

const STYLE = `
:host { color-scheme: var(--omniconnect-color-scheme, light dark);
  --_accent: var(--omniconnect-accent, light-dark(#1257b8, #8ab8ff));
  --_on-accent: var(--omniconnect-on-accent, light-dark(#fff, #06224a));
  --_text: var(--omniconnect-text, light-dark(#16202c, #e8edf3));
  --_muted: var(--omniconnect-muted, light-dark(#566170, #a9b4c0));
  --_surface: var(--omniconnect-surface, light-dark(#fff, #18202a));
  --_line: var(--omniconnect-line, light-dark(#76808d, #7d8896));
  --_soft: var(--omniconnect-soft, light-dark(#eef3fa, #222d3a));
  --_danger: var(--omniconnect-danger, light-dark(#b3261e, #ff9a92));
  --_good: var(--omniconnect-good, light-dark(#1a7f45, #6fd49a));
  --_page: var(--omniconnect-page, light-dark(#eef3fa, #0d1218)); --_hover: color-mix(in srgb, var(--_accent) 9%, transparent);
  --_radius: var(--omniconnect-radius, 12px); --_small: calc(var(--_radius) * .66);
  --_font: var(--omniconnect-font, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif); }
* { box-sizing: border-box; }
[hidden] { display: none; }
dialog { border: 0; padding: 0; margin: auto; inline-size: min(26.5rem, 100vw); max-inline-size: none; max-block-size: none;
  block-size: min(40rem, 100dvh - 2rem); border-radius: var(--_radius); background: var(--_surface); color: var(--_text);
  font: 400 1rem/1.5 var(--_font); text-align: start; overflow: hidden;
  box-shadow: 0 0 0 1px light-dark(#0000, #fff2), 0 1.5rem 4rem #0006; }
dialog[open] { display: grid; grid-template-rows: auto minmax(0, 1fr); }
dialog::backdrop { background: #0a101899; }
@media (max-width: 30rem), (max-height: 30rem) { dialog { block-size: 100dvh; border-radius: 0; } }
@media (max-width: 30rem) { dialog { inline-size: 100vw; } }
:host([full]) dialog { box-shadow: 0 0 0 1px light-dark(#0000, #fff2), 0 .5rem 2rem #0a10181a; }
:host([full]) dialog::backdrop { background: var(--_page); }
.head { position: relative; z-index: 2; display: flex; align-items: center; gap: .25rem; min-block-size: 3.5rem; padding: .375rem .5rem; }
.head span { flex: 1; min-inline-size: 0; overflow: hidden; overflow-wrap: anywhere; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; font-weight: 600; text-align: center; font-size: .9375rem; line-height: 1.3; }
.head [hidden] { display: grid; visibility: hidden; }
.body { overflow-y: auto; padding: .5rem 1.5rem 0; display: flex; flex-direction: column; gap: 1rem; scroll-padding-block: 1rem 5rem;
  scrollbar-width: thin; }
h2 { font-size: 1.375rem; line-height: 1.3; margin: 0; outline: none; text-wrap: balance; overflow-wrap: anywhere; }
p { margin: 0; } p, li { text-wrap: pretty; overflow-wrap: anywhere; } .center p { text-wrap: balance; } .muted { color: var(--_muted); font-size: .9375rem; }
.status:empty { display: none; }
ul { list-style: none; margin: 0; padding: 0; }
button, input { font: inherit; color: inherit; }
button { border: 0; background: none; cursor: pointer; border-radius: var(--_small); min-block-size: 2.75rem;
  line-height: 1.3; text-wrap: balance; overflow-wrap: anywhere; }
:focus-visible { outline: 3px solid var(--_accent); outline-offset: 2px; } .item:focus-visible { outline-offset: -3px; }
.icon { inline-size: 2.75rem; flex: none; padding: 0; display: grid; place-items: center; color: var(--_muted); }
svg { inline-size: 1.25rem; block-size: 1.25rem; fill: none; stroke: currentColor; stroke-width: 2; stroke-linecap: round;
  stroke-linejoin: round; } .flip:dir(rtl) { transform: scaleX(-1); }
.primary, .second { font-weight: 600; padding: .625rem 1rem; inline-size: 100%; }
.primary { background: var(--_accent); color: var(--_on-accent); } .primary:hover { filter: brightness(1.08); }
.primary[aria-disabled=true] { background: var(--_soft); color: var(--_muted); cursor: default; filter: none; }
.second { color: var(--_accent); }
@media (hover: hover) { :is(.second, .icon, .item:not([aria-disabled=true])):hover { background: var(--_hover); } }
.foot { margin-block-start: auto; display: grid; gap: .5rem; position: sticky; inset-block-end: 0; background: var(--_surface);
  padding-block: .75rem 1.25rem; }
.head::after, .find::after, .foot::before { content: ""; position: absolute; inset: 100% 0 auto; block-size: .5rem; pointer-events: none;
  background: linear-gradient(var(--_surface), transparent); }
@media (max-height: 30rem) { .foot { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); } }
.foot::before { inset: auto 0 100%; block-size: 1rem; transform: scaleY(-1); }
.points { display: grid; gap: 1rem; } .points li { display: flex; gap: .75rem; }
.points svg { flex: none; margin-block-start: .125rem; color: var(--_accent); }
.field { display: grid; grid-template-columns: minmax(0, 1fr); gap: .25rem; } .field label { font-weight: 600; font-size: .9375rem; }
.box { display: flex; border: 1px solid var(--_line); border-radius: var(--_small); }
.box:focus-within { outline: 3px solid var(--_accent); outline-offset: 1px; }
.box input { flex: 1; min-inline-size: 0; border: 0; background: none; padding: .625rem .75rem; min-block-size: 2.75rem;
  border-radius: inherit; outline: none; } ::placeholder { color: var(--_muted); opacity: 1; }
.box.bad { border-color: var(--_danger); box-shadow: 0 0 0 1px var(--_danger); }
.find { position: sticky; inset-block-start: -.5rem; z-index: 1; background: var(--_surface); padding-block: .5rem; margin-block: -.5rem; }
form { display: contents; }
.list { display: grid; gap: .125rem; margin-inline: -.5rem; } .list:last-child { padding-block-end: 1rem; }
.item { display: flex; align-items: center; gap: .75rem; inline-size: 100%; padding: .5rem; text-align: start; min-block-size: 3.25rem;
  border-radius: var(--_small); cursor: pointer; overflow-wrap: anywhere; }
.item[aria-disabled=true] { cursor: default; color: var(--_muted); }
small { display: block; color: var(--_muted); font-size: .8125rem; line-height: 1.4; }
.logo { inline-size: 2.25rem; block-size: 2.25rem; border-radius: .5rem; flex: none; display: grid; place-items: center;
  background: var(--_soft); font-weight: 600; font-size: .8125rem; overflow: hidden; }
.logo > * { grid-area: 1 / 1; } img { inline-size: 100%; block-size: 100%; object-fit: contain; }
.item input { inline-size: 1.25rem; block-size: 1.25rem; accent-color: var(--_accent); flex: none; margin: 0; }
.alert { border-inline-start: 4px solid var(--_danger); background: var(--_soft); padding: .625rem .75rem; border-radius: .375rem; }
.center { flex: 1 0 auto; display: grid; align-content: center; justify-items: center; gap: 1rem; text-align: center; }
.center:last-child { padding-block-end: 3.5rem; }
.mark { inline-size: 4rem; block-size: 4rem; border-radius: 50%; display: grid; place-items: center; background: var(--_soft); color: var(--_good); }
.mark.bad { color: var(--_danger); } .mark svg { inline-size: 2rem; block-size: 2rem; }
.spin { inline-size: 3rem; block-size: 3rem; border-radius: 50%; border: 4px solid var(--_soft); border-block-start-color: var(--_accent);
  animation: spin 1s linear infinite; } @keyframes spin { to { transform: rotate(1turn); } }
@media (prefers-reduced-motion: reduce) { .spin { animation: fade 3s ease-in-out infinite; } @keyframes fade { 50% { opacity: .4; } } }
@media (forced-colors: active) { .primary { border: 1px solid; } .spin { border-block-start-color: Highlight; } }
`;

const ICONS = {
  close: "M6 6l12 12M18 6L6 18",
  back: "M15 5l-7 7 7 7",
  check: "M5 12.5l4.5 4.5L19 7.5",
  lock: "M8 11V8a4 4 0 0 1 8 0v3M5 11h14v9H5z",
  list: "M5 7h14M5 12h14M5 17h9",
  stop: "M12 5v9M12 18.5v.5",
  eye: "M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12zM12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6z",
};

const MOST_SHOWN = 100;
const MOST_LINKED = 200; // As many as the service takes in the one link of a session.
const READ_TIMEOUT_MS = 40_000; // Longer than the longest `Prefer: wait`.
const ACT_TIMEOUT_MS = 60_000;
const FIRST_EVENT_MS = 5000; // The first event comes at once, unless something on the way holds it back.
const QUIET_MS = 40_000; // More than two heartbeats.
const STREAM_MS = 60_000; // Then look for oneself: what another version of the service writes may not be told.
const POPUP = "popup,width=520,height=720";

/** Make an element: attributes, `on…` listeners, children. Text becomes text, never markup. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null && child !== false && child !== ""));
  return element;
}

function icon(name) {
  const [svg, path] = ["svg", "path"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  if (name === "back") svg.classList.add("flip");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Wait; a connection that comes back ends it early, `signal` breaks it off. */
const pause = (ms, signal) =>
  new Promise((resolve, reject) => {
    const over = new AbortController();
    const end = (settle, value) => {
      clearTimeout(timer);
      over.abort();
      settle(value);
    };
    const timer = setTimeout(end, ms, resolve);
    addEventListener("online", () => end(resolve), { signal: over.signal });
    signal?.addEventListener("abort", () => end(reject, signal.reason), { signal: over.signal });
  });

/** Names in any language are found without their accents. */
const fold = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase().trim();

/** A session token names its session: `oms_<32 hex digits>_<secret>`. */
const sessionOf = (token) => `ses_${String(token).split("_")[1]}`;

/** A step that the service refused, with its envelope. */
class Refused extends Error {
  constructor(http, envelope, after) {
    super(envelope.code ?? `http_${http}`);
    this.http = http;
    this.code = envelope.code;
    this.credentials = envelope.status === "OM410";
    this.passing = Boolean(envelope.retryable) || http === 503;
    this.waitMs = 1000 * (parseInt(after, 10) || 0);
  }
}

/** Calls of one session, over `/v1`. Reads are repeated until they work; calls that act are sent once. */
class Service {
  constructor(base, storageKey) {
    this.base = base;
    this.storageKey = storageKey;
    this.session = null;
    this.onoffline = () => {};
  }

  send(method, path, { body, headers, signal, timeout = ACT_TIMEOUT_MS } = {}) {
    const late = AbortSignal.timeout(timeout);
    return fetch(this.base + path, {
      method,
      signal: signal ? AbortSignal.any([signal, late]) : late,
      credentials: "omit",
      referrerPolicy: "no-referrer",
      cache: "no-store",
      headers: {
        ...(body && { "Content-Type": "application/json" }),
        ...(this.session && { Authorization: `Bearer ${this.session.token}` }),
        ...headers,
      },
      body: body && JSON.stringify(body),
    });
  }

  async call(method, path, options) {
    const answer = await this.send(method, path, options);
    const envelope = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Refused(answer.status, envelope, answer.headers.get("Retry-After"));
    return envelope;
  }

  /** A read that survives a lost connection, a busy or a restarting service. */
  async read(path, options = {}) {
    for (let attempt = 0; ; attempt++) {
      try {
        const envelope = await this.call("GET", path, { timeout: READ_TIMEOUT_MS, ...options });
        this.onoffline(false);
        return envelope;
      } catch (error) {
        options.signal?.throwIfAborted();
        const answered = error instanceof Refused;
        if (answered && (!error.passing || attempt > 8)) throw error;
        this.onoffline(!answered);
        const backoff = Math.min(500 * 2 ** attempt, 10_000) * (0.5 + Math.random() / 2);
        await pause(Math.max(backoff, error.waitMs ?? 0), options.signal);
      }
    }
  }

  /** A validation once it is over: told by the session's events, or where these do not pass, by reads that wait. */
  async finished(id, signal) {
    const path = this.path(`/validations/${id}`);
    for (;;) {
      const told = await this.listen(id, signal).catch(() => false);
      const envelope = await this.read(path, { headers: told ? {} : { Prefer: "wait=20" }, signal });
      if (envelope.validation.state !== "pending") return envelope;
    }
  }

  /** Listen until a validation is over; false if the stream ends before, or says nothing for too long. */
  async listen(id, signal) {
    const over = new AbortController();
    const giveUp = () => over.abort();
    let timer = setTimeout(giveUp, FIRST_EVENT_MS);
    try {
      const options = { headers: { Accept: "text/event-stream" }, signal: AbortSignal.any([signal, over.signal]), timeout: STREAM_MS };
      const answer = await this.send("GET", this.path("/events"), options);
      if (!answer.ok) return false;
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let text = ""; ; ) {
        const { value, done } = await reader.read();
        if (done) return false;
        clearTimeout(timer);
        timer = setTimeout(giveUp, QUIET_MS);
        const events = (text + value).split("\n\n");
        text = events.pop();
        for (const event of events) {
          const data = event.split("\n").find((line) => line.startsWith("data: "));
          const known = data ? JSON.parse(data.slice("data: ".length)).session.validations : [];
          if (known.some((each) => each.id === id && each.state !== "pending")) return true;
        }
      }
    } finally {
      clearTimeout(timer);
      over.abort();
    }
  }

  /** The session to go on with: the token's, else the one from before a reload, else a new one. */
  async open(token, clientId, signal) {
    const known = token ? { id: sessionOf(token), token } : this.session ?? this.remembered();
    if (known) {
      this.session = known;
      try {
        const { session } = await this.read(this.path(), { signal });
        if (token || !["closed", "expired"].includes(session.state)) return session;
      } catch (error) {
        if (token || !(error instanceof Refused)) throw error;
      }
      this.forget();
    }
    const { session } = await this.call("POST", "/v1/sessions", { body: { clientId }, signal });
    this.session = { id: session.id, token: session.token };
    this.remember();
    return session;
  }

  path(rest = "") {
    return `/v1/sessions/${this.session?.id}${rest}`;
  }

  /** Keep the session that was opened here, and when its person agreed; a token's session is its host's to keep. */
  remember() {
    this.store((storage) => storage.setItem(this.storageKey, JSON.stringify(this.session)));
  }

  remembered() {
    return this.store((storage) => JSON.parse(storage.getItem(this.storageKey)));
  }

  forget() {
    this.session = null;
    this.store((storage) => storage.removeItem(this.storageKey));
  }

  /** Storage may be forbidden; then a reload starts anew. */
  store(use) {
    try {
      return use(sessionStorage);
    } catch {
      return null;
    }
  }
}

/** The drop-in client. Settles exactly as the vendor's widget does; OM200 carries `accountId` as well. */
class Omniconnect {
  #host;
  #root;
  #dialog;
  #body;
  #service;
  #options;
  #strings;
  #settle;
  #promise = null;
  #closed = true;
  #ending = null;
  #linking = null;
  #providers = [];
  #provider = null;
  #username = "";
  #hint = "";
  #goBack = null;
  #abort = new AbortController();

  /**
   * @param {Element|string} container Where the dialog is mounted: an element, its id, or a selector.
   * @param {{clientId?: string, token?: string, baseUrl?: string, strings?: object, lang?: string,
   *   hostName?: string, person?: string, consentVersion?: string, fullScreen?: boolean}} options
   */
  constructor(container, options = {}) {
    const { clientId, token } = options;
    if (!clientId && !token) throw new Error("Omniconnect needs a clientId, or a session token");
    if (options.secret) console.warn("omniconnect.js needs no secret: delete it from your page, and replace it at Omnimetic.");
    this.#host =
      typeof container === "string" ? document.getElementById(container) ?? document.querySelector(container) : container;
    if (!this.#host) throw new Error("Omniconnect needs a container element");
    this.#options = options;
    this.#strings = { ...STRINGS, ...options.strings };
    const base = options.baseUrl ?? scriptUrl?.replace(/\/sdk\/[^?#]*.*$/, "") ?? "";
    this.#service = new Service(base.replace(/\/+$/, ""), `omniconnect:${clientId ?? ""}:${options.person ?? ""}`);
    this.#service.onoffline = (offline) => this.#tell(offline ? this.#t("offline") : this.#hint);
  }

  /** Show the dialog; the promise settles once, with one of the vendor's four outcomes. */
  open() {
    if (this.#promise) return this.#promise;
    this.#promise = new Promise((resolve, reject) => {
      this.#settle = (outcome) => {
        this.#promise = null;
        (outcome.status === "OM200" ? resolve : reject)({ ...outcome });
      };
    });
    const promise = this.#promise;
    this.#mount();
    this.#begin();
    return promise;
  }

  /** Close the dialog as the person would. */
  async close() {
    if (this.#closed) return;
    this.#closed = true;
    this.#abort.abort();
    this.#username = "";
    this.#dialog.close();
    this.#root.host.remove();
    // A link that is under way is waited for: the promise must not deny what is being made.
    let outcome = (await this.#linking) ?? this.#ending ?? SETTLED.closed;
    if (this.#service.session && outcome.status !== "OM200") {
      const ended = await this.#service.call("DELETE", this.#service.path(), { timeout: 10_000 }).catch(() => null);
      // Else it is closed for the person all the same; the session expires by itself.
      if (ended?.session?.outcome?.status === "OM200") outcome = ended.session.outcome;
    }
    this.#service.forget();
    this.#settle(outcome);
  }

  #t(name, values = {}) {
    return String(this.#strings[name] ?? name).replace(/\{(\w+)\}/g, (_, key) => values[key] ?? "");
  }

  #names() {
    return { provider: this.#provider?.name ?? "", host: this.#options.hostName ?? this.#t("consentHost") };
  }

  #count(name, count) {
    return this.#t(count === 1 ? `${name}One` : name, { count });
  }

  #mount() {
    const mount = make("div", { full: Boolean(this.#options.fullScreen) });
    this.#root = mount.attachShadow({ mode: "open" });
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
    this.#root.adoptedStyleSheets = [sheet];
    this.#body = make("div", { class: "body" });
    const headerButton = (name, onclick) =>
      make("button", { class: "icon", id: name, type: "button", "aria-label": this.#t(name), onclick }, icon(name));
    this.#dialog = make(
      "dialog",
      {
        "aria-label": this.#t("title"),
        lang: this.#options.lang ?? (this.#options.strings ? null : "en"),
        oncancel: (event) => (event.preventDefault(), this.close()),
        // A second Escape closes a dialog whatever it answers to the first.
        onclose: () => this.close(),
      },
      make(
        "div",
        { class: "head" },
        headerButton("back", () => this.#goBack?.()),
        make("span", { "aria-hidden": "true" }, this.#options.hostName),
        headerButton("close", () => this.close()),
      ),
      this.#body,
    );
    this.#root.append(this.#dialog);
    this.#host.append(mount);
    this.#closed = false;
    this.#ending = this.#linking = null;
    this.#dialog.showModal();
  }

  /** Replace the screen; focus moves to its heading, so that screen readers begin there. What was under way stops. */
  #show(heading, children, { back = null, focus = null, center = false, hint = "", ending = null, actions = [] } = {}) {
    if (this.#closed) return;
    this.#abort.abort();
    this.#abort = new AbortController();
    this.#ending = ending;
    this.#hint = hint;
    this.#goBack = back;
    this.#root.getElementById("back").hidden = !back;
    const title = make("h2", { tabindex: "-1" }, heading);
    const status = make("p", { class: "muted status", role: "status" });
    const [mark, ...rest] = children;
    this.#body.replaceChildren(
      ...(center ? [make("div", { class: "center" }, mark, title, status, ...rest)] : [title, status, ...children]),
      ...(actions.length ? [this.#foot(...actions)] : []),
    );
    this.#body.scrollTop = 0;
    (focus ?? title).focus({ preventScroll: true });
    // Live regions tell what changes, not what they are born with.
    requestAnimationFrame(() => this.#tell(this.#hint));
  }

  #tell(text) {
    const status = this.#root?.querySelector(".status");
    if (status && status.textContent !== text) status.textContent = text;
  }

  #button(text, onclick, kind = "primary") {
    return make("button", { class: kind, type: "button", onclick }, text);
  }

  #foot(...buttons) {
    return make("div", { class: "foot" }, ...buttons);
  }

  #spin() {
    return make("div", { class: "spin", "aria-hidden": "true" });
  }

  #busy(heading, hint = "", back = null) {
    this.#show(heading, [this.#spin()], { center: true, hint, back });
  }

  async #begin() {
    this.#busy(this.#t("loading"));
    const { signal } = this.#abort;
    try {
      let session = await this.#service.open(this.#options.token, this.#options.clientId, signal);
      while (session.state === "linking" && !signal.aborted) {
        await pause(1000, signal);
        session = (await this.#service.read(this.#service.path(), { signal })).session;
      }
      if (session.state !== "open") return this.#ended(session);
      this.#providers = (await this.#service.read("/v1/providers", { signal })).providers;
      const pending = session.validations.findLast((each) => each.state === "pending");
      if (pending) {
        this.#provider = this.#providers.find((each) => each.id === pending.providerId) ?? { id: pending.providerId, name: "" };
        return this.#follow(pending);
      }
      return session.validations.some((each) => each.state === "succeeded") ? this.#accounts() : this.#consent();
    } catch (error) {
      this.#broke(error, () => this.#begin());
    }
  }

  #ended(session) {
    if (session.outcome?.status === "OM200") return this.#linked(session.outcome);
    const text = session.state === "unknown" ? this.#t("unclear", this.#names()) : this.#t("expired");
    this.#failed(text, [], session.outcome);
  }

  #consent(next = () => this.#choose()) {
    const point = (name, key) => make("li", {}, icon(name), make("span", {}, this.#t(key)));
    const agree = () => {
      this.#service.session.agreed = new Date().toISOString();
      if (!this.#options.token) this.#service.remember();
      next();
    };
    this.#show(this.#t("title"), [
      make("p", {}, this.#t("consentLead", this.#names())),
      make("ul", { class: "points" }, point("list", "consentRead"), point("lock", "consentPassword"), point("check", "consentStop")),
    ], { actions: [this.#button(this.#t("next"), agree)] });
  }

  #choose(back = () => this.#consent()) {
    const list = make("ul", { class: "list", "aria-label": this.#t("chooseTitle") });
    const buttons = () => [...list.querySelectorAll("button")];
    const input = make("input", {
      type: "search",
      autocomplete: "off",
      spellcheck: "false",
      "aria-label": this.#t("search"),
      placeholder: this.#t("search"),
      oninput: () => fill(),
      onkeydown: (event) => {
        if (event.isComposing || !["ArrowDown", "Enter"].includes(event.key)) return;
        event.preventDefault();
        if (event.key === "ArrowDown") buttons()[0]?.focus();
        else if (input.value.trim()) list.querySelector("button:not([aria-disabled=true])")?.click();
      },
    });
    list.addEventListener("keydown", (event) => {
      const all = buttons();
      const at = all.indexOf(event.target);
      const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      (to < 0 ? input : all[to])?.focus();
    });
    const fill = () => {
      const text = fold(input.value);
      const hits = this.#providers.filter((each) => fold(each.name).includes(text));
      const later = (each) => (fold(each.name).startsWith(text) ? 0 : 1);
      hits.sort((a, b) => later(a) - later(b));
      list.replaceChildren(...hits.slice(0, MOST_SHOWN).map((each) => make("li", {}, this.#providerButton(each, back))));
      this.#hint = hits.length ? this.#count("found", hits.length) : this.#t("foundNone", { text: input.value.trim() });
      this.#tell(this.#hint);
    };
    this.#show(this.#t("chooseTitle"), [make("div", { class: "find" }, make("div", { class: "box" }, input)), list], { back, focus: input });
    fill();
  }

  #providerButton(provider, back) {
    const go = () => {
      this.#username = "";
      this.#signIn(provider, { back: () => this.#choose(back) });
    };
    return make(
      "button",
      { class: "item", type: "button", "aria-disabled": String(!provider.available), onclick: () => provider.available && go() },
      this.#logo(provider),
      make("span", {}, make("bdi", {}, provider.name), provider.available ? null : make("small", {}, this.#t("unavailable"))),
    );
  }

  #logo(provider) {
    const initials = provider.name.split(/\s+/).map((word) => word[0]).join("").slice(0, 2).toUpperCase();
    const text = make("span", {}, initials);
    const path = provider.logo?.startsWith("/logos/") ? provider.logo : `/logos/${encodeURIComponent(provider.id)}`;
    const src = this.#service.base + path;
    const image = provider.logo && make("img", { alt: "", loading: "lazy", onload: () => text.remove(), onerror: () => image.remove() });
    if (image) image.src = src;
    return make("span", { class: "logo", "aria-hidden": "true" }, text, image);
  }

  #signIn(provider, { alert = "", back = () => this.#choose() } = {}) {
    this.#provider = provider;
    const again = { back };
    const problem = make("p", { class: "alert", id: "problem", role: "alert", hidden: !alert }, alert);
    if (provider.signIn === "oauth") {
      return this.#show(this.#t("signInTitle", this.#names()), [
        problem,
        make("p", {}, this.#t("oauthHint", this.#names())),
      ], { back, actions: [this.#button(this.#t("oauthOpen", this.#names()), () => this.#startOauth(again))] });
    }
    const field = (name, properties, ...more) => {
      const input = make("input", { id: name, name, required: true, "aria-describedby": "problem", ...properties });
      const box = make("span", { class: "box" }, input, ...more);
      return { input, box, whole: make("div", { class: "field" }, make("label", { for: name }, this.#t(name)), box) };
    };
    const reveal = make("button", { class: "icon", type: "button", "aria-label": this.#t("show"), onclick: () => {
      const hidden = password.input.type === "password";
      password.input.type = hidden ? "text" : "password";
      reveal.setAttribute("aria-label", this.#t(hidden ? "hide" : "show"));
    } }, icon("eye"));
    const plain = { autocapitalize: "none", autocorrect: "off", spellcheck: "false" };
    const username = field("username", { ...plain, autocomplete: "username", maxlength: "320" });
    const password = field("password", { ...plain, type: "password", autocomplete: "current-password", maxlength: "1024" }, reveal);
    username.input.value = this.#username;
    const mark = (each, bad) => {
      each.box.classList.toggle("bad", bad);
      each.input.setAttribute("aria-invalid", String(bad));
    };
    if (alert) [username, password].forEach((each) => mark(each, true));
    const submit = (event) => {
      event.preventDefault();
      const empty = [username, password].filter((each) => !each.input.value);
      [username, password].forEach((each) => mark(each, empty.includes(each)));
      if (empty.length) {
        problem.textContent = this.#t("required");
        problem.hidden = false;
        return empty[0].input.focus();
      }
      this.#username = username.input.value;
      this.#validate({ username: this.#username, password: password.input.value }, again);
      password.input.value = "";
    };
    this.#show(this.#t("signInTitle", this.#names()), [
      make(
        "form",
        { onsubmit: submit, novalidate: true },
        problem,
        make("p", { class: "muted" }, this.#t("signInHint", this.#names())),
        username.whole,
        password.whole,
        this.#foot(make("button", { class: "primary", type: "submit" }, this.#t("signIn"))),
      ),
    ], { back, focus: this.#username ? password.input : username.input });
  }

  /** Start a validation. If no answer comes it may run all the same: then the session tells, once it can be asked. */
  async #start(credentials, again) {
    const provider = this.#provider;
    const path = this.#service.path("/validations");
    const { signal } = this.#abort;
    try {
      const body = { providerId: provider.id, ...credentials };
      return (await this.#service.call("POST", path, { body, signal })).validation;
    } catch (error) {
      if (signal.aborted || (error instanceof Refused && error.code !== "already_in_progress")) throw error;
      if (!(error instanceof Refused)) this.#tell(this.#t("offline"));
      const { session } = await this.#service.read(this.#service.path(), { signal });
      const running = session.validations.findLast((each) => each.providerId === provider.id && each.state !== "rejected");
      if (running) return running;
      this.#signIn(provider, { ...again, alert: this.#t("lost") });
      return null;
    }
  }

  async #validate(credentials, again) {
    this.#busy(this.#t("working", this.#names()), this.#t("workingSoon"));
    const { signal } = this.#abort;
    try {
      const validation = await this.#start(credentials, again);
      if (validation) await this.#follow(validation, again);
    } catch (error) {
      if (!signal.aborted) this.#validationBroke(error, again);
    }
  }

  async #startOauth(again) {
    // Opened now, while the click still counts; a browser blocks what opens later.
    const popup = window.open("about:blank", "_blank", POPUP);
    this.#busy(this.#t("loading"));
    const { signal } = this.#abort;
    try {
      const validation = await this.#start({}, again);
      if (!validation?.authorizeUrl) popup?.close();
      else if (popup) {
        // That page must not steer this one; the price is that the person closes it.
        popup.opener = null;
        popup.location.replace(validation.authorizeUrl);
      }
      if (validation) await this.#follow(validation, again);
    } catch (error) {
      popup?.close();
      if (!signal.aborted) this.#validationBroke(error, again);
    }
  }

  /** Show a validation until it is finished. */
  async #follow(validation, again = {}) {
    const url = validation.authorizeUrl;
    const path = this.#service.path(`/validations/${validation.id}`);
    const back = () => {
      this.#service.call("DELETE", path).catch(() => {});
      this.#signIn(this.#provider, again);
    };
    if (url) {
      const reopen = () => window.open(url, "_blank", `noopener,${POPUP}`);
      const actions = [this.#button(this.#t("oauthAgain"), reopen, "second")];
      const hint = this.#t("oauthWaitingHint");
      this.#show(this.#t("oauthWaiting", this.#names()), [this.#spin()], { back, hint, center: true, actions });
    } else this.#busy(this.#t("working", this.#names()), this.#t("workingSoon"), back);
    const { signal } = this.#abort;
    const later = (seconds, name) => setTimeout(() => !url && this.#tell((this.#hint = this.#t(name))), seconds * 1000);
    const timers = [later(15, "workingLong"), later(60, "workingVeryLong")];
    signal.addEventListener("abort", () => timers.forEach(clearTimeout));
    try {
      const over = validation.state !== "pending";
      this.#concluded(over ? { validation } : await this.#service.finished(validation.id, signal), again);
    } catch (error) {
      if (!signal.aborted) this.#validationBroke(error, again);
    }
  }

  #concluded({ status, validation: { state, reason, attemptsLeft } }, again) {
    if (state === "succeeded") return this.#accounts();
    if (state === "rejected") {
      if (this.#provider.signIn === "oauth") return this.#signIn(this.#provider, { ...again, alert: this.#t("oauthDenied", this.#names()) });
      if (attemptsLeft === 0) return this.#failed(this.#t("tooMany"), [this.#other()], SETTLED.closed);
      const more = attemptsLeft == null ? "" : ` ${this.#count("attemptsLeft", attemptsLeft)}`;
      return this.#signIn(this.#provider, { ...again, alert: this.#t("wrong") + more });
    }
    const text = { timed_out: "timedOut", utility_unavailable: "utilityDown" }[reason] ?? "broken";
    const retry = this.#button(this.#t("retry"), () => this.#signIn(this.#provider, again));
    this.#failed(this.#t(text, this.#names()), [retry, this.#other("second")], status === "OM410" ? SETTLED.refused : SETTLED.broken);
  }

  #validationBroke(error, again) {
    if (error.http === 429) return this.#failed(this.#t("tooMany"), [this.#other()], SETTLED.closed);
    this.#broke(error, () => this.#signIn(this.#provider, again));
  }

  #other(kind = "primary") {
    return this.#button(this.#t("other"), () => this.#choose(), kind);
  }

  async #accounts() {
    // A session from before a reload may be of whoever was here before: without a consent nothing of it is shown.
    if (!this.#options.token && !this.#service.session.agreed) return this.#consent(() => this.#accounts());
    this.#busy(this.#t("accountsLoading"));
    const { signal } = this.#abort;
    try {
      const { serviceAccounts } = await this.#service.read(this.#service.path("/service-accounts"), { signal });
      if (serviceAccounts.length) this.#pick(serviceAccounts);
      else this.#failed(this.#t("accountsNone"), [this.#other()], SETTLED.closed);
    } catch (error) {
      if (!signal.aborted) this.#broke(error, () => this.#accounts());
    }
  }

  #pick(accounts) {
    const box = (properties) => make("input", { type: "checkbox", ...properties });
    const boxes = accounts.map(({ id }) => box({ value: id, checked: accounts.length === 1, onchange: () => update() }));
    const most = { count: MOST_LINKED };
    const many = accounts.length > MOST_LINKED;
    const all = accounts.length > 1 && box({ onchange: () => {
      boxes.forEach((each, index) => (each.checked = all.checked && index < MOST_LINKED));
      update();
    } });
    const chosen = () => boxes.filter((each) => each.checked).map((each) => each.value);
    const go = this.#button("", () => go.ariaDisabled === "false" && this.#link(chosen()));
    const update = () => {
      const { length } = chosen();
      go.textContent = length > MOST_LINKED ? this.#t("linkMany", most) : length ? this.#count("link", length) : this.#t("linkNone");
      go.ariaDisabled = String(!length || length > MOST_LINKED);
      if (!all) return;
      all.checked = boxes.every((each, index) => each.checked === index < MOST_LINKED);
      all.indeterminate = length > 0 && !all.checked;
    };
    const row = (input, text, small = []) => {
      const parts = small.flatMap((each, index) => [index ? " · " : "", make("bdi", {}, each)]);
      return make("li", {}, make("label", { class: "item" }, input, make("span", {}, make("bdi", {}, text), make("small", {}, ...parts))));
    };
    const account = ({ id, address, meterNumber, legalNames }, index) => {
      const { street, city, state, postalCode } = address ?? {};
      const place = [street, city, [state, postalCode].filter(Boolean).join(" ")].filter(Boolean).join(", ");
      const small = [meterNumber && this.#t("meter", { number: meterNumber }), ...(legalNames ?? [])].filter(Boolean);
      return row(boxes[index], place || this.#t("account", { id }), small);
    };
    this.#show(this.#t("accountsTitle"), [
      make("ul", { class: "list", "aria-label": this.#t("accountsTitle") }, all && row(all, this.#t(many ? "accountsFirst" : "accountsAll", most)), ...accounts.map(account)),
    ], {
      actions: [go, this.#button(this.#t("more"), () => this.#choose(() => this.#pick(accounts)), "second")],
      hint: many ? this.#t("linkMost", most) : "",
    });
    update();
  }

  async #link(ids) {
    this.#busy(this.#t("linking"), this.#t("linkingHint"));
    this.#linking = this.#sendLink(ids).then((show) => (this.#closed ? show.outcome : (this.#linking = null, show())));
  }

  /** Make the link; answers what to show, and as its `outcome` how the promise settles if nobody looks any more. */
  async #sendLink(serviceAccountIds) {
    const version = this.#options.consentVersion;
    const consent = version && { version, acceptedAt: this.#service.session.agreed ?? new Date().toISOString() };
    const then = (show, outcome) => Object.assign(show, { outcome });
    for (let attempt = 0; ; attempt++) {
      try {
        // Safe to repeat: the service sends one choice once, whoever asks how often.
        const body = { serviceAccountIds, ...(consent && { consent }) };
        const { message, status, accountId, serviceAccounts } = await this.#service.call("POST", this.#service.path("/links"), { body });
        const outcome = { message, status, accountId, serviceAccounts };
        return then(() => this.#linked(outcome), outcome);
      } catch (error) {
        const answered = error instanceof Refused;
        if (error.code === "outcome_unknown") {
          return then(() => this.#failed(this.#t("unclear", this.#names()), [], SETTLED.broken), SETTLED.broken);
        }
        const passing = answered ? error.passing && error.http !== 502 : attempt < 20;
        if (!passing || (answered && attempt > 5)) {
          return then(() => this.#broke(error, () => this.#begin()), answered ? null : SETTLED.broken);
        }
        this.#tell(answered ? this.#hint : this.#t("offline"));
        await pause(Math.max(Math.min(1000 * 2 ** attempt, 8000), error.waitMs ?? 0));
      }
    }
  }

  #linked(outcome) {
    this.#show(this.#t("linkedTitle"), [
      make("div", { class: "mark" }, icon("check")),
    ], {
      actions: [this.#button(this.#t("done"), () => this.close())],
      center: true,
      hint: this.#count("linked", outcome.serviceAccounts.length),
      ending: outcome,
    });
  }

  /** Say what went wrong; closing from here settles with `ending`. */
  #failed(text, actions, ending) {
    const close = this.#button(this.#t("close"), () => this.close(), actions.length ? "second" : "primary");
    const content = [make("div", { class: "mark bad" }, icon("stop")), make("p", { role: "alert" }, text)];
    this.#show(this.#t("failedTitle"), content, { center: true, ending, actions: [...actions, close] });
  }

  async #broke(error, again) {
    if (error.http === 401 || error.credentials) return this.#failed(this.#t("broken"), [], SETTLED.refused);
    if (["session_expired", "session_closed"].includes(error.code)) {
      const ended = await this.#service.call("GET", this.#service.path()).catch(() => null);
      return ended ? this.#ended(ended.session) : this.#failed(this.#t("expired"), [], SETTLED.closed);
    }
    this.#failed(this.#t("broken"), [this.#button(this.#t("retry"), again)], SETTLED.broken);
  }
}
