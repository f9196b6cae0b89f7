/**
 * A stand-in for the vendor's widget, for the demo and the tests: its calls, headers, one-second polling and decisions,
 * none of its looks. What a page loads in its place is the vendor's own script, unmodified.
 * It reaches its server as the vendor's builds do: `local` on port 4200, `preview` on the page's own origin,
 * `production` on the vendor's host.
 */
const BASES = { local: "http://localhost:4200/api", preview: "/api", production: "https://app.omnimetic.com/api" };

const JOB_TYPES = {
  "Arizona Public Service": "APSLogin",
  "Salt River Project": "SRPLogin",
  "Tuscan Electric Power": "TEPLogin",
  "Pacific Gas and Electric Company": "PGELogin",
};
const OAUTH = ["Pacific Gas and Electric Company", "San Diego Gas & Electric", "Southern California Edison"];

const OUTCOMES = {
  closed: { message: "Rejected: User closes the widget", status: "OM400" },
  secret: { message: "Rejected: Incorrect secret or client id", status: "OM410" },
  broken: { message: "Rejected: Internal server error", status: "OM500" },
};

class Omnimetic {
  constructor(container, { secret, clientId, build = "preview" }) {
    if (!secret || !clientId) throw new Error("secret and clientId are required");
    this.container = typeof container === "string" ? document.getElementById(container) : container;
    this.config = { secret, clientId };
    this.base = BASES[build];
  }

  open() {
    return new Promise((resolve, reject) => {
      this.settle = (outcome) => {
        clearInterval(this.timer);
        this.settle = () => {};
        this.container.replaceChildren();
        (outcome.status === "OM200" ? resolve : reject)(outcome);
      };
      this.start();
    });
  }

  /** The vendor's builds call by XMLHttpRequest. */
  send(method, path, body, headers = {}) {
    return new Promise((resolve) => {
      const request = new XMLHttpRequest();
      request.open(method, this.base + path);
      request.setRequestHeader("content-type", "application/json;charset=UTF-8");
      if (this.token) request.setRequestHeader("authorization", `Bearer ${this.token}`);
      for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
      request.onload = () => {
        let parsed = null;
        try {
          parsed = JSON.parse(request.responseText);
        } catch {
          // Not every answer has a body.
        }
        resolve({ status: request.status, body: parsed });
      };
      request.onerror = () => resolve({ status: 0, body: null });
      request.send(body === undefined ? null : JSON.stringify(body));
    });
  }

  async start() {
    const token = await this.send("POST", "/access-token", { ...this.config, name: "Omnimetic" });
    if (token.status === 401) return this.settle(OUTCOMES.secret);
    if (token.status !== 200) return this.settle(OUTCOMES.broken);
    this.accountId = token.body.id;
    this.token = token.body.token;
    const companies = await this.send("GET", "/utility-companies");
    if (companies.status !== 200) return this.settle(OUTCOMES.broken);
    this.choose(companies.body);
  }

  element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  show(...children) {
    const close = this.element("button", { type: "button", textContent: "Close", onclick: () => this.settle(OUTCOMES.closed) });
    const shown = children.filter((child) => child.tagName !== "P" || child.textContent);
    this.container.replaceChildren(this.element("div", { className: "widget" }, ...shown, close));
  }

  choose(companies) {
    const select = this.element("select", { name: "company" });
    const label = this.element("label", { textContent: "Utility" }, select);
    for (const company of companies) select.append(new Option(company.name, company.id));
    const next = this.element("button", {
      type: "button",
      textContent: "Next",
      onclick: () => this.signIn(companies.find((each) => each.id === select.value)),
    });
    this.show(label, next);
  }

  signIn(company, problem = "") {
    const elsewhere = OAUTH.includes(company.name) || company.loginUrl;
    if (elsewhere && !company.loginUrl) {
      // The vendor's own goes to an address that it knows, of a real utility.
      const back = this.element("button", { type: "button", textContent: "Start again", onclick: () => this.start() });
      return this.show(this.element("p", { textContent: `${company.name} told no address to sign in at` }), back);
    }
    if (elsewhere) {
      const go = this.element("button", { type: "button", textContent: "Sign in at the utility", onclick: () => this.job(company, "username", "password", true) });
      return this.show(go);
    }
    const username = this.element("input", { name: "username", placeholder: "Username", autocomplete: "off" });
    const password = this.element("input", { name: "password", type: "password", placeholder: "Password", autocomplete: "off" });
    const go = this.element("button", { type: "button", textContent: "Sign in", onclick: () => this.job(company, username.value, password.value, false) });
    const labels = [this.element("label", { textContent: "Username" }, username), this.element("label", { textContent: "Password" }, password)];
    this.show(this.element("p", { textContent: problem }), ...labels, go);
  }

  async job(company, username, password, oauth) {
    const popup = oauth ? window.open("about:blank", "utility", "width=520,height=720") : null;
    this.show(this.element("p", { textContent: "This might take up to 15 seconds" }));
    const type = JOB_TYPES[company.name];
    const body = { username, password, utilityCompanyId: company.id };
    const job = await this.send("POST", "/jobs", body, type ? { type } : {});
    if (job.status !== 201) return popup?.close(), this.settle(OUTCOMES.broken);
    if (popup) {
      const page = new URL(company.loginUrl);
      page.searchParams.set("client_id", "494ee81b3ca1470babfb6bb59ee64e07");
      page.searchParams.set("redirect_uri", "https://app.omnimetic.com/oauth2/pge/authorize");
      page.searchParams.set("response_type", "code");
      page.searchParams.set("state", `jobId=${job.body.id}`);
      popup.location = page.href;
    }
    this.timer = setInterval(() => this.poll(company, job.body.id), 1000);
  }

  async poll(company, jobId) {
    const job = await this.send("GET", `/jobs/${jobId}`);
    if (job.status !== 200 || job.body.status === "error") return this.settle(OUTCOMES.broken);
    if (job.body.status !== "success" || this.polled === jobId) return;
    this.polled = jobId;
    clearInterval(this.timer);
    const { response } = job.body;
    if (response.status === "incorrect-credential") return this.signIn(company, "Incorrect username or password");
    if (response.status === "server-error") return this.settle(OUTCOMES.broken);
    if (response.accounts) return this.link(response.accounts.map((each) => each.serviceAccountId));
    const account = await this.send("GET", `/utility-user-account/${response.accountId}`);
    if (account.status !== 200) return this.settle(OUTCOMES.broken);
    this.pick(account.body.serviceAccounts);
  }

  pick(accounts) {
    const boxes = accounts.map((each) => this.element("input", { type: "checkbox", value: each.id, checked: true }));
    const rows = accounts.map((each, index) => this.element("label", {}, boxes[index], each.address?.street ?? each.id));
    const go = this.element("button", {
      type: "button",
      textContent: "Link",
      onclick: () => this.link(boxes.filter((box) => box.checked).map((box) => box.value)),
    });
    this.show(this.element("p", { textContent: accounts.length ? "Choose accounts" : "No accounts" }), ...rows, ...(accounts.length ? [go] : []));
  }

  async link(ids) {
    const linked = await this.send("POST", `/${this.accountId}/utility-service-accounts/batch`, ids);
    if (linked.status !== 201) return this.settle(OUTCOMES.broken);
    this.settle({
      message: "Resolved: User account(s) successfully linked",
      serviceAccounts: ids.map((id) => ({ id })),
      status: "OM200",
    });
  }
}

window.Omnimetic = Omnimetic;
