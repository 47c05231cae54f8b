import { AppError } from '../../shared/errors.ts';
import { nearest } from '../../shared/nearest.ts';
import type { HostView } from '../fleet/host-view.ts';

/** PURE. A host that can be asked now. */
export type ConnectedHost = HostView & { snapshot: NonNullable<HostView['snapshot']> };

/** The hosts a call is about: the named one, or all. An unknown name is refused with those there are. */
export function namedHosts(hosts: readonly HostView[], name: string | undefined): readonly HostView[] {
  if (hosts.length === 0) throw noHosts();
  if (name === undefined) return hosts;
  const host = hosts.find((candidate) => candidate.name === name);
  if (host !== undefined) return [host];
  const names = hosts.map((candidate) => candidate.name);
  const near = nearest(name, names);
  const hint = near === undefined ? '' : ` Did you mean ${near}?`;
  throw new AppError('INVALID_ARGUMENT', `Unknown host '${name}'.${hint} Known hosts: ${names.join(', ')}.`);
}

/** Those of the named hosts that are connected; if none is, the reason of each. */
export function connectedHosts(hosts: readonly HostView[], name: string | undefined): readonly ConnectedHost[] {
  const named = namedHosts(hosts, name);
  const connected = named.flatMap((host) =>
    host.link.kind === 'up' && host.snapshot !== undefined ? [{ ...host, snapshot: host.snapshot }] : [],
  );
  if (connected.length > 0) return connected;
  const [only] = named;
  if (named.length === 1 && only?.link.kind === 'down') {
    throw new AppError(only.link.error.code, `${only.link.error.message} ${nextAttempt(only.link.retryInMs)}`);
  }
  const reasons = named.map((host) => `${host.name} (${host.url}): ${linkProblem(host)}`);
  throw new AppError('NO_HOST', `No host is connected. ${reasons.join(' ')} gantry doctor or server_health says more.`);
}

/** Of those that cannot read the VRAM of their models, why not. */
export function estimateNotes(hosts: readonly ConnectedHost[]): string[] {
  return hosts.flatMap(({ name, snapshot: { vramEstimate } }) =>
    vramEstimate === undefined ? [] : `${name}: ${vramEstimate}`,
  );
}

/** Why a host cannot be asked, with its code. */
export function linkProblem({ link, snapshot }: HostView): string {
  switch (link.kind) {
    case 'connecting':
      return 'still connecting. Try again in a few seconds.';
    case 'up':
      if (snapshot === undefined) return 'connected, but it has not reported its state yet.';
      return snapshot.problems.length === 0 ? 'connected.' : snapshot.problems.join(' ');
    case 'down':
      return `${link.error.code}: ${link.error.message} ${nextAttempt(link.retryInMs)}`;
  }
}

function nextAttempt(inMs: number): string {
  return `Next attempt in ${Math.max(1, Math.ceil(inMs / 1_000))} s.`;
}

function noHosts(): AppError {
  return new AppError(
    'NO_HOST',
    'No host is configured. Run `gantry-agent invite` on a GPU host, type the line it prints on this machine, which writes ' +
      'bridge.yaml, and start the bridge again; `gantry doctor` says what is missing. A plain vLLM-Omni server needs no agent: ' +
      'start the bridge with --vllm-url URL.',
  );
}
