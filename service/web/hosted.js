// The hosted page: exchanges the link's secret for the session of this browser, then runs the client full-screen.
import { Omniconnect } from "./omniconnect.mjs";

const session = location.pathname.split("/").pop();
const secret = location.hash.slice(1) || undefined;
// Out of the address bar: what is shared or photographed from here on opens nothing.
history.replaceState(null, "", location.pathname);
// The same link opened in this very tab changes nothing but the fragment.
addEventListener("hashchange", () => location.reload());

const hostName = document.querySelector('meta[name="application-name"]').content || undefined;
const main = document.querySelector("main");
const [heading, text, link, button] = ["h1", "p", "a", "button"].map((name) => main.querySelector(name));

/** Show a message, with at most one way on: an address to go to, or something to do. */
const say = (title, words, { back, label, go } = {}) => {
  heading.textContent = document.title = title;
  text.textContent = words;
  link.hidden = !back;
  if (back) link.href = back;
  button.hidden = !go;
  button.textContent = label ?? "";
  button.onclick = go;
  main.hidden = false;
  heading.focus();
};

const backTo = ({ returnUrl, cancelUrl }, status) => {
  const url = new URL(status === "OM400" ? cancelUrl : returnUrl);
  url.searchParams.set("sessionId", session);
  url.searchParams.set("status", status);
  return url.href;
};

const tellEnd = (entered, status) => {
  const back = backTo(entered, status);
  say(status === "OM200" ? "Your accounts are connected" : "Nothing was connected", "You can go back now.", { back });
  return back;
};

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

/** Ask to be let in; passing failures are tried again a few times. */
const ask = async (begin) => {
  for (let attempt = 0; ; attempt++) {
    const answer = await fetch(`${location.pathname}/enter`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ secret, begin }),
    }).catch(() => null);
    const passing = !answer || answer.status >= 500;
    if (!passing || attempt === 3) return { ...(await answer?.json().catch(() => null)), http: answer?.status };
    await pause(Math.min(parseInt(answer?.headers.get("Retry-After"), 10) || 2 ** attempt / 2, 10));
  }
};

/** Whether this page's token is still the session's: another tab or browser that enters gets a new one. */
const isReplaced = (token) =>
  fetch(`${location.pathname}/../../v1/sessions/${session}`, { headers: { Authorization: `Bearer ${token}` } }).then(
    (answer) => answer.status === 401,
    () => false,
  );

const run = (entered) => {
  main.hidden = true;
  const settle = async ({ status }) => {
    if (status === "OM410" && (await isReplaced(entered.token))) {
      const reload = { label: "Go on here", go: () => location.reload() };
      return say("This page was opened elsewhere", "Go on in the other tab or browser.", reload);
    }
    // An app may open only at a click; until then there is something to click on.
    location.replace(tellEnd(entered, status));
  };
  new Omniconnect(document.body, { token: entered.token, hostName, fullScreen: true }).open().then(settle, settle);
};

const enter = async (begin) => {
  button.hidden = true;
  const entered = await ask(begin);
  if (entered.token) return run(entered);
  if (entered.outcome) return tellEnd(entered, entered.outcome.status);
  if (entered.returnUrl) {
    // What opens links by itself, as mail scanners do, stops here.
    const words = hostName ? `${hostName} asks you to connect your utility account.` : "It takes about a minute.";
    return say("Connect your utility account", words, { label: "Start", go: () => enter(true) });
  }
  const again = { label: "Try again", go: () => enter(begin) };
  if (entered.code === "already_in_progress") return say("This link is in use", "Accounts are being connected in another browser.", again);
  if (entered.http === 409 || entered.http === 410) return say("This link has been used", "It is done, or its time is over. Ask for a new link if you need one.");
  if (entered.http === 404 || entered.http === 422) return say("This link does not work", "Check that you have opened the whole link, or ask for a new one.");
  say("That did not work", "Please try again in a moment.", again);
};

await enter(false);
