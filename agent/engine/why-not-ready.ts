import { toAppError } from '../../shared/errors.ts';
import type { EngineAnswer } from './engine.ts';
import { callEngine, parse } from './engine.ts';

/**
 * Why nobody answers as a ready engine at this URL, in sentences with what to do: asks once more and looks at what comes
 * back. For a server that somebody else runs, of which there is neither a process nor a log. Rejects only with its signal.
 */
export async function whyNotReady(
  url: string,
  { signal, deadlineMs }: { signal: AbortSignal; deadlineMs: number },
): Promise<string> {
  try {
    const health = await callEngine(`${url}/health`, { signal, deadlineMs });
    const models = await callEngine(`${url}/v1/models`, { signal, deadlineMs });
    return ofAnswers(url, { health, models });
  } catch (error) {
    signal.throwIfAborted();
    return ofNetwork(url, error);
  }
}

const NOT_VLLM = 'Give the base URL of a vLLM-Omni server, like http://gpu-box:8000, without a path behind it';

/** What its two answers mean, when they are not those of a ready server. */
export function ofAnswers(url: string, { health, models }: { health: EngineAnswer; models: EngineAnswer }): string {
  const { status, location } = health;
  if (status >= 300 && status < 400) {
    return `${url} redirects to ${location ?? 'another address'}. Give the address that it leads to.`;
  }
  if (status === 401 || status === 403) {
    return `${url} refuses the request (${status}). gantry sends no key: put the server on an address that only you reach, without one.`;
  }
  if (status === 502 || status === 504) {
    return `A proxy at ${url} finds no server behind it (${status}). Start the server there.`;
  }
  if (status === 503) {
    return `The server at ${url} says that it is not healthy (503): it starts, or its engine has died. Its log tells.`;
  }
  if (status === 404 || status === 405) {
    return `What answers at ${url} is no vLLM-Omni server (${status} at /health, ${models.status} at /v1/models). ${NOT_VLLM}.`;
  }
  if (status !== 200) return `The server at ${url} answers /health with ${status}. Its log tells why.`;
  const isJson = parse(models.body.toString('utf8')) !== undefined;
  if (models.status === 200 && isJson) {
    return `The server at ${url} lists no model at /v1/models. It may still be starting; else ${decapitalised(NOT_VLLM)}.`;
  }
  return `What answers at ${url} is no vLLM-Omni server (/v1/models: ${models.status === 200 ? 'no JSON' : models.status}). ${NOT_VLLM}.`;
}

const CERTIFICATE = /^(CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_|ERR_TLS_CERT|HOSTNAME_MISMATCH|INVALID_CA)/;
const NO_TLS = /^(EPROTO|ERR_SSL_)/;

/** What the failure of a connection means. */
export function ofNetwork(url: string, error: unknown): string {
  const code = codeOf(error);
  const { hostname } = new URL(url);
  if (code === 'ECONNREFUSED') {
    return `Nobody listens at ${url} (connection refused). Start the server there, or correct the address.`;
  }
  if (code === 'ENOTFOUND' || code === 'EAI_AGAIN') {
    return `The name ${hostname} in ${url} is not known here (${code}). Correct it, or use the machine's address.`;
  }
  if (CERTIFICATE.test(code)) {
    return (
      `The certificate of ${url} is not accepted (${code}). Give the server one of an authority that this machine trusts, ` +
      "or name the authority's file in NODE_EXTRA_CA_CERTS."
    );
  }
  if (NO_TLS.test(code)) return `${url} does not speak TLS (${code}). Use http:// if the server has no certificate.`;
  if (code === 'ECONNRESET' || code.startsWith('HPE_')) {
    return `What listens at ${url} hangs up, or speaks no HTTP (${code}). If it wants TLS, use https://.`;
  }
  const why = code === '' ? toAppError(error).message : code;
  return `${url} cannot be reached (${why}). Check that the machine is on, and that no firewall is between.`;
}

function codeOf(error: unknown): string {
  if (error instanceof AggregateError) return error.errors.map(codeOf).find((code) => code !== '') ?? '';
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : '';
}

function decapitalised(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1);
}
