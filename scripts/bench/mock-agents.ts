// Many agents in one process, each on a port of its own: they answer hello, send the snapshot that they were given, and,
// once told 'on', a delta of the GPUs each second, spread over the second as those of real hosts are.
// Arguments: how many, a file with a snapshot. Messages: the ports, then 'linked' when all are connected; after 'count', the deltas sent since the last time.
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { RawData, WebSocket } from 'ws';
import { WebSocketServer } from 'ws';
import { pause } from '../../shared/abort.ts';
import type { GpuStatus } from '../../shared/host-snapshot.ts';
import { HostSnapshot } from '../../shared/host-snapshot.ts';
import { Frame, SUBPROTOCOL } from '../../shared/protocol.ts';

const SECOND_MS = 1_000;
const TURNS = 20;

const [count = '1', file = ''] = process.argv.slice(2);
const snapshot = HostSnapshot.parse(JSON.parse(await readFile(file, 'utf8')));
const links: { socket: WebSocket; revision: number; gpus: GpuStatus[] }[] = [];
let sent = 0;
let isOn = false;

process.on('message', (message) => {
  if (message === 'on') isOn = true;
  if (message !== 'count') return;
  process.send?.(sent);
  sent = 0;
});
process.send?.(await Promise.all(Array.from({ length: Number(count) }, () => agent())));
await tellEverySecond();

async function agent(): Promise<number> {
  const server = createServer();
  const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false, handleProtocols: () => SUBPROTOCOL });
  server.on('upgrade', (request, socket, head) => {
    sockets.handleUpgrade(request, socket, head, (link) => link.on('message', (data) => answer(link, data)));
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  return (server.address() as AddressInfo).port; // a TCP server that listens has one
}

function answer(socket: WebSocket, data: RawData): void {
  const frame = Frame.parse(JSON.parse((data as Buffer).toString())); // binaryType is nodebuffer
  if (!('method' in frame) || !('id' in frame)) return;
  const send = (content: object): void => socket.send(JSON.stringify({ jsonrpc: '2.0', ...content }));
  if (frame.method !== 'hello') return send({ id: frame.id, result: {} });
  send({ id: frame.id, result: { agentId: randomUUID(), epoch: randomUUID(), jobs: [] } });
  const own = ownSnapshot();
  send({ method: 'snapshot', params: { revision: 0, snapshot: own } });
  links.push({ socket, revision: 0, gpus: own.gpus });
  if (links.length === Number(count)) process.send?.('linked');
}

/** Hosts have their own ids, and have learned their own times; what the models are is the same for all. */
function ownSnapshot(): HostSnapshot {
  const ms = 1_000 + links.length;
  const gpus = snapshot.gpus.map((gpu) => ({ ...gpu, uuid: `GPU-${randomUUID()}`, powerW: 50 + Math.random() }));
  const models = snapshot.models.map((model) => ({
    ...model,
    loadMs: ms,
    wakeMs: ms,
    idleMs: ms,
    service: { fixedMs: ms, unitMs: ms + 0.5, samples: 1 },
  }));
  return { ...snapshot, agentId: randomUUID(), hostname: `host-${links.length}`, gpus, models };
}

async function tellEverySecond(): Promise<void> {
  for (let turn = 0; ; turn = (turn + 1) % TURNS) {
    await pause(SECOND_MS / TURNS, new AbortController().signal);
    if (isOn) for (let index = turn; index < links.length; index += TURNS) tell(index);
  }
}

function tell(index: number): void {
  const link = links[index];
  if (link === undefined) return;
  link.revision += 1;
  sent += 1;
  const gpus = link.gpus.map((gpu) => ({ ...gpu, temperatureC: 30 + (link.revision % 40) }));
  const params = { revision: link.revision, changed: { gpus } };
  link.socket.send(JSON.stringify({ jsonrpc: '2.0', method: 'delta', params }));
}
