// Many bridges in one process, as bare as they get: each says hello and then counts the status frames it is sent.
// Arguments: the agent's URL, a token, how many. Messages: 'ready' when all have their snapshot; to 'count' it answers the
// frames since the last time.
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { WebSocket } from 'ws';
import { PROTOCOL_VERSION, SUBPROTOCOL, WS_PATH } from '../../shared/protocol.ts';

/** So many upgrades at a time: the agent is to be measured, not its queue of connections. */
const AT_ONCE = 20;

/** The reply to hello, and the snapshot. */
const BEFORE_DELTAS = 2;

const [url = '', token = '', count = '1'] = process.argv.slice(2);
let frames = 0;
let left = Number(count);
process.on('message', () => {
  process.send?.(frames);
  frames = 0;
});
await Promise.all(Array.from({ length: AT_ONCE }, () => connectSome()));
frames = 0;
process.send?.('ready');

async function connectSome(): Promise<void> {
  while (left > 0) {
    left -= 1;
    await connect();
  }
}

async function connect(): Promise<void> {
  const headers = { authorization: `Bearer ${token}` };
  const socket = new WebSocket(url + WS_PATH, SUBPROTOCOL, { headers, perMessageDeflate: false });
  socket.on('close', (code) => {
    process.stderr.write(`the agent closed a subscriber: ${code}\n`);
    process.exit(1);
  });
  await once(socket, 'open');
  const params = { version: PROTOCOL_VERSION, bridgeId: randomUUID(), name: 'bench' };
  const begun = new Promise<void>((resolve) => {
    let own = 0;
    socket.on('message', () => {
      own += 1;
      if (own > BEFORE_DELTAS) frames += 1;
      else if (own === BEFORE_DELTAS) resolve();
    });
  });
  socket.send(JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'hello', params }));
  await begun;
}
