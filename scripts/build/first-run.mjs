// Runs the built bridge once as a client would and keeps the code that V8 compiled for it.
import { writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { Readable } from 'node:stream';

const [node, , launcher, home, out] = process.argv;
const config = join(home, 'bridge.yaml');
// Nothing listens there: the call goes as far as a link that fails.
writeFileSync(config, 'hosts: [{ name: none, url: "ws://127.0.0.1:9", token: gantry_none }]\n', { mode: 0o600 });

const client = { protocolVersion: '2025-11-25', capabilities: {}, clientInfo: { name: 'build', version: '1' } };
const messages = [
  { id: 1, method: 'initialize', params: client },
  { method: 'notifications/initialized' },
  { id: 2, method: 'tools/list', params: {} },
  { id: 3, method: 'tools/call', params: { name: 'gpu_status', arguments: {} } },
];
const lines = messages.map((message) => `${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`);
Object.defineProperty(process, 'stdin', { value: Readable.from([Buffer.from(lines.join(''))]) });
process.argv = [node, launcher, 'bridge', '--config', config];
process.on('exit', () => writeFileSync(out, script.createCachedData()));
const { script } = createRequire(import.meta.url)(launcher);
