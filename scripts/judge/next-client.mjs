// next-client.mjs DIRECTORY MODE COMMAND ARGS...
// Drives a stdio server with the @modelcontextprotocol/client that is installed in DIRECTORY; prints one JSON of checks.
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [directory, mode, command, ...args] = process.argv.slice(2);
const installed = createRequire(join(directory, 'from-here.js'));
const load = (name) => import(pathToFileURL(installed.resolve(name)).href);
const { Client } = await load('@modelcontextprotocol/client');
const { StdioClientTransport } = await load('@modelcontextprotocol/client/stdio');

const client = new Client({ name: 'judge', version: '1' }, { versionNegotiation: { mode } });
await client.connect(new StdioClientTransport({ command, args, env: { ...process.env }, stderr: 'inherit' }));
const { tools } = await client.listTools();
const health = await client.callTool({ name: 'server_health', arguments: {} });
const told = [];
const image = await client.callTool(
  { name: 'generate_image', arguments: { prompt: 'a red fox', width: 256, height: 256 } },
  { onprogress: ({ message }) => told.push(message), timeout: 60_000 },
);
const wrong = await client.callTool({ name: 'generate_image', arguments: { prompt: 'x', stepz: 1 } });
const stop = new AbortController();
const cancelled = client
  .callTool({ name: 'generate_image', arguments: { prompt: 'unwanted' } }, { signal: stop.signal })
  .then(
    () => false,
    () => true,
  );
stop.abort('the user pressed stop');
const checks = {
  'tools are listed': tools.some(({ name }) => name === 'generate_image'),
  'structured content': health.isError !== true && typeof health.structuredContent === 'object',
  'an image and its preview': image.isError !== true && image.content.some(({ type }) => type === 'image'),
  'progress is told': told.length > 0,
  'an unknown argument is a tool error': wrong.isError === true && /stepz/.test(wrong.content[0].text),
  'a cancelled call ends': await cancelled,
  'the server still answers': (await client.listTools()).tools.length === tools.length,
};
await client.close();
process.stdout.write(`${JSON.stringify(checks)}\n`);
