// relay.mjs PORT COMMAND ARGS...
// The official conformance suite speaks HTTP only, and gantry speaks stdio only. This stands between them: each HTTP
// session gets a process of its own, and every message is passed on as it is, in both directions.
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';

const LOCAL = ['localhost', '127.0.0.1', '[::1]'];
const JSON_TYPE = { 'content-type': 'application/json' };

const [port, command, ...args] = process.argv.slice(2);
if (command === undefined) {
  process.stderr.write('usage: relay.mjs PORT COMMAND ARGS...   (PORT 0: any; the address is printed)\n');
  process.exit(64);
}

/** Session id → its HTTP side. */
const sessions = new Map();

const server = createServer((request, response) => {
  answer(request, response).catch((error) => {
    process.stderr.write(`relay: ${error.stack}\n`);
    if (!response.headersSent) response.writeHead(500);
    response.end();
  });
});
server.listen(Number(port), '127.0.0.1', () => {
  process.stdout.write(`http://127.0.0.1:${server.address().port}/mcp\n`);
});
for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => void end());
// Whoever started it is gone.
process.stdin.once('end', () => void end());
process.stdin.resume();

async function answer(request, response) {
  if (!isLocal(request)) return refuse(response, 403, { code: -32000, message: 'Forbidden: not a local address' });
  if (new URL(request.url, 'http://localhost').pathname !== '/mcp')
    return refuse(response, 404, { code: -32000, message: 'Not found' });
  const id = request.headers['mcp-session-id'];
  if (id === undefined && request.method === 'POST') return await open(request, response);
  const session = sessions.get(id);
  if (session === undefined) return refuse(response, 404, { code: -32001, message: 'Session not found' });
  await session.handleRequest(request, response);
}

/** A page in a browser reaches 127.0.0.1 too, but by the name of its own site. */
function isLocal({ headers: { host, origin } }) {
  const nameOf = (url) => {
    try {
      return new URL(url).hostname;
    } catch {
      return undefined;
    }
  };
  return LOCAL.includes(nameOf(`http://${host}`)) && (origin === undefined || LOCAL.includes(nameOf(origin)));
}

function refuse(response, status, error) {
  response.writeHead(status, JSON_TYPE).end(JSON.stringify({ jsonrpc: '2.0', id: null, error }));
}

/** One process and one HTTP session, tied together until either ends. */
async function open(request, response) {
  const child = new StdioClientTransport({ command, args, env: process.env, stderr: 'inherit' });
  const http = new StreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    onsessioninitialized: (id) => void sessions.set(id, http),
  });
  const requests = new OpenRequests();
  http.onmessage = (message) => {
    requests.opened(message);
    child.send(message).catch(() => http.close());
  };
  child.onmessage = (message) => {
    // An HTTP stream that its client has closed takes no message; nobody waits for it.
    http.send(message, { relatedRequestId: requests.of(message) }).catch(() => undefined);
  };
  http.onclose = () => {
    sessions.delete(http.sessionId);
    void child.close();
  };
  child.onclose = () => void http.close();
  await child.start();
  await http.start();
  await http.handleRequest(request, response);
  if (http.sessionId === undefined) await http.close(); // it was no initialize
}

/** Which requests of the client are open, so that what the server says meanwhile goes to the right stream. */
class OpenRequests {
  #ids = [];
  #byToken = new Map();

  opened({ method, id, params }) {
    if (method === 'notifications/cancelled') this.#ended(params.requestId); // that one is never answered
    if (method === undefined || id === undefined) return;
    this.#ids.push(id);
    const token = params?._meta?.progressToken;
    if (token !== undefined) this.#byToken.set(token, id);
  }

  /** The request that a message of the server belongs to; undefined sends it on the stream of its own. */
  of({ method, id, params }) {
    if (method === undefined) return this.#ended(id); // an answer finds its request by its id
    return method === 'notifications/progress' ? this.#byToken.get(params.progressToken) : this.#ids.at(-1);
  }

  #ended(ended) {
    this.#ids = this.#ids.filter((id) => id !== ended);
    return undefined;
  }
}

async function end() {
  await Promise.all([...sessions.values()].map((session) => session.close()));
  server.closeAllConnections();
  server.close();
}
