// A vLLM-Omni whose wake says SUCCESS and does nothing: the simulator behind a proxy that keeps that one call from it.
import { spawn } from 'node:child_process';
import { createServer, request } from 'node:http';
import { createServer as createSocket } from 'node:net';

const [simulator, ...args] = process.argv.slice(2);
const at = args.indexOf('--port') + 1;
const port = Number(args[at]);
const probe = createSocket().listen(0, '127.0.0.1', () => {
  const inner = probe.address().port;
  probe.close(() => start(inner));
});

function start(inner) {
  args[at] = String(inner);
  const child = spawn(simulator, args, { stdio: 'inherit' });
  child.once('exit', (code) => process.exit(code ?? 1));
  process.on('SIGTERM', () => child.kill('SIGTERM'));
  createServer((asked, answer) => {
    if (asked.url === '/v1/omni/wakeup') {
      asked.resume();
      answer.setHeader('content-type', 'application/json');
      answer.end(JSON.stringify({ status: 'SUCCESS', acks: [{ status: 'SUCCESS', error_msg: null }] }));
      return;
    }
    const { method, headers, url: path } = asked;
    const passed = request({ host: '127.0.0.1', port: inner, method, path, headers, agent: false }, (response) => {
      answer.writeHead(response.statusCode, response.headers);
      response.pipe(answer);
    });
    passed.on('error', () => answer.destroy());
    asked.pipe(passed);
  }).listen(port, '127.0.0.1');
}
