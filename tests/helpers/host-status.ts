import type { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import type { HostSnapshot } from '../../shared/host-snapshot.ts';
import type { AgentJob } from '../../shared/protocol.ts';
import { NOTIFICATIONS, REQUESTS } from '../../shared/protocol.ts';
import { WsPeer } from '../agent/rpc/ws-peer.ts';

export type SeenStatus = {
  snapshot: HostSnapshot;
  /** Attempts of this token that no bridge has acknowledged. */
  jobs: readonly AgentJob[];
  /** From the call to the answer, a new connection included. */
  tookMs: number;
};

/** What the agent says of its host at this moment, asked over a link of its own. */
export async function statusOf(host: SimulatedHost): Promise<SeenStatus> {
  const startMs = performance.now();
  await using peer = await WsPeer.hello({ port: Number(new URL(host.url).port) }, host.token);
  const params = await peer.until(() => peer.notifications('snapshot')[0]);
  const tookMs = performance.now() - startMs;
  const hello = peer.frames.flatMap((frame) => ('result' in frame ? [frame.result] : []))[0];
  const { jobs } = REQUESTS.hello.result.parse(hello);
  return { snapshot: NOTIFICATIONS.snapshot.params.parse(params).snapshot, jobs, tookMs };
}

/** The status of one model by its alias. */
export async function modelOf(host: SimulatedHost, alias: string): Promise<HostSnapshot['models'][number]> {
  const { snapshot } = await statusOf(host);
  const model = snapshot.models.find((candidate) => candidate.alias === alias);
  if (model === undefined) throw new Error(`${host.name} has no model ${alias}`);
  return model;
}

/** Asks the agent itself, as a bridge would; throws its error as text. */
export async function askAgent(host: SimulatedHost, method: string, params: unknown): Promise<unknown> {
  await using peer = await WsPeer.hello({ port: Number(new URL(host.url).port) }, host.token);
  const reply = await peer.ask(method, params);
  if (reply.error !== undefined) throw new Error(`${reply.error.data.code}: ${reply.error.message}`);
  return reply.result;
}
