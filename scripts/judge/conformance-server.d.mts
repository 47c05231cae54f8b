export function buildConformanceServer(path?: string): Promise<string>;
