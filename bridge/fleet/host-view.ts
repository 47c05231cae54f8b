import type { AppError } from '../../shared/errors.ts';
import type { HostSnapshot } from '../../shared/host-snapshot.ts';
import type { Tls } from '../../shared/http-client.ts';

/** Where an agent is reached: `url` is `ws://host:port` or `wss://host:port`, without a path. */
export type HostAddress = { url: string; token: string; tls?: Tls };

/**
 * One configured host. Where `reach` is there, it is asked for the address before each connection, and may take a while to
 * make one; `url` is then only what people are shown, and `token` is nothing. Its error is what the link says.
 */
export type HostConfig = HostAddress & { name: string; reach?: (signal: AbortSignal) => Promise<HostAddress> };

/** Durations of the bridge; the same object in configuration and tests, so that tests can scale it. */
export type BridgeTimes = {
  pingEveryMs: number;
  silenceMs: number;
  offerEveryMs: number;
  reconnectFirstMs: number;
  reconnectMaxMs: number;
  /** How often room for the images is looked at, and at the latest looked at again after there was none. */
  diskCheckMs: number;
};

export type LinkState =
  { kind: 'connecting' } | { kind: 'up'; latencyMs: number } | { kind: 'down'; error: AppError; retryInMs: number };

/** What the bridge knows of one host now. The snapshot stays when the link goes down; `statusAgeMs` tells how old it is. */
export type HostView = {
  name: string;
  url: string;
  link: LinkState;
  snapshot: HostSnapshot | undefined;
  statusAgeMs: number;
  /** How long a result of this host takes to arrive, observed; 0 until one did. */
  transferMs: number;
};
