/** The four ways in which `open()` settles; the first resolves, the others reject. */
export interface Linked {
  status: "OM200";
  message: "Resolved: User account(s) successfully linked";
  /** The account at Omnimetic that the service accounts now belong to. */
  accountId: string;
  serviceAccounts: { id: string }[];
}

export type Rejected =
  | { status: "OM400"; message: "Rejected: User closes the widget" }
  | { status: "OM410"; message: "Rejected: Incorrect secret or client id" }
  | { status: "OM500"; message: "Rejected: Internal server error" };

/** The client's sentences; their English texts stand at the top of its source. */
export type StringKey =
  | "title" | "close" | "back" | "next" | "retry" | "done" | "loading" | "consentLead" | "consentHost"
  | "consentRead" | "consentPassword" | "consentStop" | "chooseTitle" | "search" | "found" | "foundOne"
  | "foundNone" | "unavailable" | "signInTitle" | "signInHint" | "username" | "password" | "show" | "hide"
  | "signIn" | "required" | "wrong" | "attemptsLeft" | "attemptsLeftOne" | "lost" | "oauthHint" | "oauthOpen"
  | "oauthWaiting" | "oauthWaitingHint" | "oauthAgain" | "oauthDenied" | "working" | "workingSoon" | "workingLong"
  | "workingVeryLong" | "offline" | "accountsLoading" | "accountsTitle" | "accountsNone" | "accountsAll"
  | "accountsFirst" | "meter" | "account" | "link" | "linkOne" | "linkNone" | "linkMany" | "linkMost" | "linking"
  | "linkingHint" | "linkedTitle" | "linked" | "linkedOne" | "failedTitle" | "utilityDown" | "timedOut" | "tooMany"
  | "unclear" | "broken" | "expired" | "other" | "more";

interface Common {
  /** Address of the service; by default the one that served this script. */
  baseUrl?: string;
  /** The name of the host application, as the consent names it. */
  hostName?: string;
  /** Your key of who is logged in: a session that was left unfinished in this tab is resumed for nobody else. */
  person?: string;
  /** Version of the terms that the person agrees to; it is kept with the link. */
  consentVersion?: string;
  /** Other words or another language, by key; `{…}` parts are filled in. */
  strings?: Partial<Record<StringKey, string>>;
  /** Language of the strings, as in `lang=`. */
  lang?: string;
  /** Fill the window, for a page that holds nothing else. */
  fullScreen?: boolean;
}

/** A publishable client id, or a session token that the host's server made. Never a secret. */
export type Options = Common & ({ clientId: string; token?: undefined } | { token: string; clientId?: undefined });

export class Omniconnect {
  /**
   * @param container Where the dialog is mounted: an element, its id, or a selector.
   * @throws {Error} Neither `clientId` nor `token` is given, or there is no such container.
   */
  constructor(container: Element | string, options: Options);

  /** Show the dialog. The promise settles once; a second call meanwhile returns the same one. */
  open(): Promise<Linked>;

  /** Close the dialog, as the person would. Resolves as soon as the promise of `open()` is settled. */
  close(): Promise<void>;
}

export { Omniconnect as Omnimetic };

declare global {
  interface Window {
    Omniconnect: typeof Omniconnect;
    Omnimetic: typeof Omniconnect;
  }
}
