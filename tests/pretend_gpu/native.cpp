// What a build of torch without CUDA lacks before its autograd, its `pin_memory` and its
// `torch.Generator` take tensors that say they are on a GPU: a device guard, CUDA's hooks, page-locked
// memory, generators that say they are a GPU's, and a count of the bytes that a GPU would hold.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_map>

using c10::Device, c10::DeviceIndex, c10::DeviceType, c10::Stream;

static constexpr int MOST = 64;             // GPUs
static DeviceIndex count = 0;               // visible GPUs; none before the installation
static thread_local DeviceIndex now = 0;    // the current one
static thread_local int holds = -1;         // the GPU that memory is allocated for; -1: the CPU

// One current device and one stream a thread: nothing runs behind anyone's back.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device exchangeDevice(Device d) const override { auto old = getDevice(); setDevice(d); return old; }
  Device getDevice() const override { return {DeviceType::CUDA, now}; }
  void setDevice(Device d) const override { if (d.has_index()) now = d.index(); }
  void uncheckedSetDevice(Device d) const noexcept override { if (d.has_index()) now = d.index(); }
  Stream getStream(Device d) const noexcept override {
    return Stream(Stream::DEFAULT, {DeviceType::CUDA, d.has_index() ? d.index() : now}); }
  Stream exchangeStream(Stream s) const noexcept override { return getStream(s.device()); }
  DeviceIndex deviceCount() const noexcept override { return count; }
};
static c10::impl::DeviceGuardImplRegistrar guard(DeviceType::CUDA, new Guard);

// Page-locked memory: ordinary memory whose addresses are remembered.
static std::mutex pinning;
static std::map<const char*, size_t> pinned;
struct Pinned final : c10::Allocator {
  static void release(void* p) {
    std::lock_guard<std::mutex> held(pinning); pinned.erase(static_cast<char*>(p)); std::free(p); }
  c10::DataPtr allocate(size_t n) override {
    void* p = n ? std::aligned_alloc(64, (n + 63) / 64 * 64) : nullptr;
    std::lock_guard<std::mutex> held(pinning);
    if (p) pinned[static_cast<char*>(p)] = n;
    return {p, p, &release, Device(DeviceType::CPU)}; }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }
};

// The CPU's allocator, which remembers what was allocated while an operator of a GPU ran. As CUDA's
// does, it counts in units of 512 bytes and refuses what the GPU has no room for.
static std::mutex counting;
static std::unordered_map<void*, std::pair<int, size_t>> owned;
static size_t allocated[MOST], peak[MOST], most = SIZE_MAX;
struct Counted final : c10::Allocator {
  c10::Allocator* plain = c10::GetDefaultCPUAllocator();
  static Counted& only() { static Counted one; return one; }
  static void release(void* p) {
    { std::lock_guard<std::mutex> held(counting);
      if (auto it = owned.find(p); it != owned.end()) {
        allocated[it->second.first] -= it->second.second; owned.erase(it); } }
    only().plain->raw_deleter()(p); }
  c10::DataPtr allocate(size_t n) override {
    int gpu = holds;
    size_t bytes = (n + 511) / 512 * 512;
    if (gpu >= 0) {
      std::lock_guard<std::mutex> held(counting);
      TORCH_CHECK_WITH(OutOfMemoryError, allocated[gpu] + bytes <= most,
        "CUDA out of memory. Tried to allocate ", bytes, " bytes. GPU ", gpu, " has a total capacity of ",
        most, " bytes of which ", most - allocated[gpu], " bytes is free.");
    }
    auto made = plain->allocate(n);
    void* p = made.release_context();
    if (gpu >= 0 && p) {
      std::lock_guard<std::mutex> held(counting);
      owned[p] = {gpu, bytes};
      allocated[gpu] += bytes;
      peak[gpu] = std::max(peak[gpu], allocated[gpu]);
    }
    return {p, p, &release, Device(DeviceType::CPU)}; }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }
};

// The CPU's generator, that the CPU's operators refuse.
struct Generator final : at::CPUGeneratorImpl {
  explicit Generator(DeviceIndex index) {
    device_ = Device(DeviceType::CUDA, index);
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::CUDA); }
  Generator* clone_impl() const override {
    auto made = new Generator(device_.index());
    made->set_state(*get_state());
    return made; }
};

struct PretendHooks final : at::CUDAHooksInterface {
  PretendHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return count > 0; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return count; }
  int getNumGPUs() const override { return count; }
  DeviceIndex current_device() const override { return now; }
  DeviceIndex getCurrentDevice() const override { return now; }
  void setCurrentDevice(DeviceIndex d) const override { now = d; }
  DeviceIndex exchangeDevice(DeviceIndex d) const override { auto old = now; now = d; return old; }
  DeviceIndex maybeExchangeDevice(DeviceIndex d) const override { return d < 0 ? now : exchangeDevice(d); }
  void deviceSynchronize(DeviceIndex) const override {}
  at::Generator getNewGenerator(DeviceIndex d = -1) const override {
    return at::make_generator<Generator>(d < 0 ? now : d); }
  c10::Allocator* getPinnedMemoryAllocator() const override { static Pinned all; return &all; }
  bool isPinnedPtr(const void* p) const override {
    std::lock_guard<std::mutex> held(pinning);
    auto after = pinned.upper_bound(static_cast<const char*>(p));
    if (after == pinned.begin()) return false;
    auto [begin, size] = *std::prev(after);
    return static_cast<const char*>(p) < begin + size; }
};
using at::CUDAHooksRegistry, at::RegistererCUDAHooksRegistry;
static RegistererCUDAHooksRegistry hooks("CUDAHooks", at::CUDAHooksRegistry(),
  RegistererCUDAHooksRegistry::DefaultCreator<PretendHooks>, "PretendHooks");

extern "C" {
void pretend_install(size_t memory) { most = memory; c10::SetCPUAllocator(&Counted::only(), 1); }
void pretend_devices(int n) { count = DeviceIndex(n); }
void pretend_set(int index) { now = DeviceIndex(index); }
int pretend_get() { return now; }
int pretend_hold(int index) { int before = holds; holds = index; return before; }
size_t pretend_allocated(int index) { std::lock_guard<std::mutex> held(counting); return allocated[index]; }
size_t pretend_peak(int index) { std::lock_guard<std::mutex> held(counting); return peak[index]; }
void pretend_reset_peak(int index) {
  std::lock_guard<std::mutex> held(counting); peak[index] = allocated[index]; }
}
