export function layOutMcpb(folder: string): Promise<void>;
export function mcpbManifest(): Promise<{
  name: string;
  version: string;
  tools: { name: string; description: string }[];
}>;
