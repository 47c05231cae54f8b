/**
 * Whether the pids that the driver lists are the pids of this machine, as this agent sees it. The driver knows no pid
 * namespaces: in a container it lists the host's numbers, or none, and 4242 there is somebody else here. PURE.
 */
export type Numbering = {
  kind: 'here' | 'elsewhere';
  /** One of our own was listed under its own number. */
  isProven: boolean;
};

export type ListedPid = { pid: number; lives: boolean };

export type NumberingFacts = {
  /** Pids of our servers that live now. */
  ours: ReadonlySet<number>;
  listed: readonly ListedPid[];
  /** Listed the last time. */
  before: ReadonlySet<number>;
  last: Numbering;
  /** This agent runs in the first namespace, where numbers are the driver's. */
  isFirstNamespace: boolean;
};

export function numberingOf({ ours, listed, before, last, isFirstNamespace }: NumberingFacts): Numbering {
  // 1. What was seen once does not change while the agent runs.
  if (last.isProven || listed.some(({ pid }) => ours.has(pid))) return { kind: 'here', isProven: true };
  // 2. A number without a life of its own appears while a server of ours runs and is not listed: that is the server.
  const strangers = listed.filter(({ lives }) => !lives);
  if (last.kind === 'elsewhere' || (ours.size > 0 && strangers.some(({ pid }) => !before.has(pid)))) {
    return { kind: 'elsewhere', isProven: false };
  }
  // 3. Elsewhere than in the first namespace one number of nobody is enough to trust none.
  return { kind: isFirstNamespace || strangers.length === 0 ? 'here' : 'elsewhere', isProven: false };
}
